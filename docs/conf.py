"""The site of these documents: sphinx-build -W -c docs . build/site (extra "docs").

Sphinx reads from the repository's root, so that the links that work in the repository work on the site.
"""

import json
from pathlib import Path
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser

NAVIGATION = {
    "Tutorials": [
        *("docs/tutorials/laptop", "docs/notebooks/first_look", "docs/tutorials/one_gpu", "docs/tutorials/own_domain"),
        *("docs/tutorials/published_adapter", "docs/notebooks/published_adapter", "docs/tutorials/another_judge"),
        "docs/tutorials/tpu",
    ],
    "Manual": [
        *("docs/commands", "docs/settings", "docs/verdict", "docs/suites", "docs/models", "docs/studies"),
        *("docs/directions", "docs/serving", "docs/responsible_use"),
    ],
    "Machines": ["docs/tpu_vm", "docs/scaling", "docs/performance", "docs/collectives"],
    "The code": ["BUILD", "docs/api", "CONTRIBUTING", "CHANGELOG"],
}

project = "em_jax"
root_doc = "README"
include_patterns = ["*.md", "docs/**"]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
myst_heading_anchors = 3
html_theme = "furo"
html_title = "em_jax"
html_copy_source = False


class NotebookParser(MystParser):
    """A notebook as Markdown: its texts, and its code in fences. Outputs are not stored in the repository."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        parts = []
        for cell in json.loads(inputstring)["cells"]:
            text = "".join(cell["source"])
            parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        super().parse("\n\n".join(parts), document)


def add_navigation(app: Any, name: str, content: list[str]) -> None:
    """Put the table of contents of the site below the README."""
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            content[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```\n"])


def write_start_page(app: Any, error: Exception | None) -> None:
    if error is None:
        page = f'<!doctype html><title>em_jax</title><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Any) -> None:
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_start_page)
