"""One self-contained page from a template: everything escaped, nothing loaded, only our own style and script allowed.

The content security policy names the page's one style sheet and one script by their hashes; anything else, whatever a
model wrote, is refused by the browser even if escaping had failed.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from em_jax.base.sanitize import sanitize
from em_jax.report import text
from em_jax.report.svg import DARK, LIGHT, class_css, theme_css

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> Environment:
    """The template environment: autoescape always, hidden characters of every printed string made visible."""
    made = Environment(
        loader=PackageLoader("em_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters |= {"number": text.number, "count": text.count, "duration": text.duration, "line": text.one_line}
    return made


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return sanitize(value)
    return "" if value is None else value


def render(template: str, **values: Any) -> str:
    """The page of a template in templates/, its style and script inlined and named in its policy."""
    style = _style()
    script = _read("browse.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment().get_template(template)
    return page.render(policy=policy, style=Markup(style), script=Markup(script), **values)


def _style() -> str:
    dark = theme_css(DARK)
    head = f":root {{ {theme_css(LIGHT)} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return head + class_css() + "\n" + _read("style.css")


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"
