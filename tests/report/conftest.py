"""Fixtures of the report's tests: synthetic runs, and a browser that remembers what went wrong in it."""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from em_jax import report

_BROWSERS = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")


@pytest.fixture(scope="session")
def synthetic():
    """The module that writes synthetic run directories."""
    from report import make_run

    return make_run


@pytest.fixture
def make_run(tmp_path, synthetic) -> Callable[..., Path]:
    """make_run(name, **settings) -> a synthetic run directory under the test's own."""
    return lambda name="run", **settings: synthetic.make_run(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def page_of(tmp_path_factory, synthetic) -> Callable[..., Path]:
    """page_of(**settings) -> the report of a synthetic run, written once for all tests that only look at it."""

    @functools.cache
    def write(**settings):
        return report.write(synthetic.make_run(tmp_path_factory.mktemp("page") / "run", **settings))

    return write


@dataclass
class Visit:
    """An open page, with everything its console said and every address it asked for."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; without one these tests are skipped and say so."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip("no browser found: install Debian's package chromium, or set CHROMIUM to a browser's path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """visit(path, width, height, scheme) -> Visit of a local page."""
    contexts = []

    def open_page(path: Path, width: int = 1280, height: int = 900, scheme: str = "light", **more) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.goto(path.resolve().as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()
