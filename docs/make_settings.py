"""Writes docs/settings.md from the dataclasses of settings: python docs/make_settings.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Settings

Made by `python docs/make_settings.py` from the dataclasses; `em-jax settings [NAME]` prints the same.

`--config FILE.toml` (or the name of a preset in `configs/`) and `--set table.key=value` can both be repeated; later
values win, and flags win over both. The defaults are the paper's where it states them. The last column says what the
paper used: "known" is stated in a public source, "read" was read in a released file, "ours" has no source and is our
choice, "disputed" is stated differently by sources.

Presets: `paper`, `paper_lr3e5`, `paper_t07`, `organism` (always applied to the organism), `smoke`, `h200`,
and one per domain.
"""


def text() -> str:
    """The content of the file."""
    from em_jax.commands import settings

    return "\n".join([HEAD, *settings.tables()])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    (ROOT / "docs" / "settings.md").write_text(text(), encoding="utf-8")
