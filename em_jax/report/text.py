"""Texts and numbers as the page shows them. Long texts are cut, and the page says so.

The template engine escapes HTML, and page.py makes hidden characters visible.
"""

import sys
from dataclasses import dataclass
from typing import Any

MINUS = "\u2212"
DASH = "\u2013"
MAX_LINES = 80


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a text, and how many characters the whole text has."""

    text: str
    total: int

    @property
    def cut(self) -> bool:
        """Whether something was left out."""
        return len(self.text) < self.total


def excerpt(value: Any, limit: int) -> Excerpt:
    """At most `limit` characters and MAX_LINES lines of a text; other values are converted to text, None to "".

    Trailing newlines of an excerpt that is cut are left out.
    """
    text = "" if value is None else str(value)
    beginning = "\n".join(text[:limit].split("\n", MAX_LINES)[:MAX_LINES])
    return Excerpt(beginning.rstrip("\n") if len(beginning) < len(text) else text, len(text))


def one_line(text: str, limit: int) -> str:
    """The beginning of a text on one line, with an ellipsis where it was cut."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "\u2026"


def is_number(value: Any) -> bool:
    """Whether this is a finite number (no bool), and small enough for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def finite(value: Any) -> float | None:
    """The value as a float; None for what is no finite number."""
    return float(value) if is_number(value) else None


def number(value: Any, digits: int = 2, signed: bool = False) -> str:
    """A number for people: fixed digits, a true minus sign, a dash where there is none."""
    if not is_number(value):
        return DASH
    text = f"{value:z.{digits}f}".replace("-", MINUS)
    return f"+{text}" if signed and value > 0 and float(text) else text


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f") if is_number(value) else DASH
