"""One self-contained page from a template: everything escaped, nothing loaded, only our own style and script allowed.

The content security policy names the page's style sheet and script by their hashes. The browser refuses anything else
that a model wrote, even if escaping had failed.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from em_jax.base.progress import duration
from em_jax.base.sanitize import sanitize
from em_jax.report import paper, text, vocabulary
from em_jax.report.svg import figure_css
from em_jax.report.unscored import unscored

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> Environment:
    """The template environment: autoescape always, hidden characters of every printed string made visible."""
    templates = Environment(
        loader=PackageLoader("em_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    templates.filters |= {"number": text.number, "count": text.count, "duration": duration, "line": text.one_line}
    templates.filters["figure"] = vocabulary.FIGURES.__getitem__
    templates.filters["paper_differences"] = paper.differences
    templates.globals |= {"words": vocabulary, "paper": paper, "unscored": unscored}
    return templates


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return sanitize(value)
    return "" if value is None else value


def render(template: str, **values: Any) -> str:
    """The page of a template in templates/, with its style and script inline and named in its policy."""
    style, script = (_TEMPLATES / name for name in ("style.css", "browse.js"))
    sources = {"style": figure_css() + style.read_text(encoding="utf-8"), "script": script.read_text(encoding="utf-8")}
    hashes = {kind: base64.b64encode(hashlib.sha256(source.encode()).digest()) for kind, source in sources.items()}
    allowed = " ".join(f"{kind}-src 'sha256-{each.decode()}';" for kind, each in hashes.items())
    policy = f"default-src 'none'; {allowed} img-src data:; base-uri 'none'; form-action 'none'"
    inline = {kind: Markup(source) for kind, source in sources.items()}
    return environment().get_template(template).render(policy=policy, **inline, **values)
