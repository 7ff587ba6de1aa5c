"""Text that others wrote, made fit to show: hidden characters become visible, long texts are cut and say so.

Escaping HTML is the template engine's work; this file takes care of what escaping leaves alone. A model's answer may
hold terminal escapes, marks that turn the reading direction round, half of a surrogate pair, or a megabyte on a line.
"""

import sys
from dataclasses import dataclass
from typing import Any

MINUS = "\u2212"
DASH = "\u2013"
MOST_LINES = 80


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it: at most so many characters, and how many there were."""

    text: str
    total: int

    @property
    def cut(self) -> bool:
        return len(self.text) < self.total


def shown(text: Any, limit: int) -> Shown:
    """At most `limit` characters and MOST_LINES lines of a text (anything else is written out first)."""
    text = text if isinstance(text, str) else "" if text is None else str(text)
    lines = text[:limit].split("\n", MOST_LINES)[:MOST_LINES]
    beginning = "\n".join(lines)
    return Shown(beginning.rstrip("\n") if len(beginning) < len(text) else text, len(text))


def one_line(text: str, limit: int) -> str:
    """The beginning of a text on one line, with an ellipsis where it was cut."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "\u2026"


def is_number(value: Any) -> bool:
    """Whether this is a finite number that can be drawn and compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(value: Any, digits: int = 2, signed: bool = False) -> str:
    """A number for people: fixed digits, a true minus sign, a dash where there is none."""
    if not is_number(value):
        return DASH
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    if value < 0 and not zero:
        return MINUS + text
    return f"+{text}" if signed and not zero else text


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f") if is_number(value) else DASH


def duration(seconds: Any) -> str:
    """Seconds in the two units that matter: 48 s, 3 min 05 s, 2 h 10 min."""
    if not is_number(seconds):
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
