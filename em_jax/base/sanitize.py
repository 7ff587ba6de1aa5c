"""Makes hidden characters of untrusted text visible, for a terminal or a page.

A model's answer or a name in a file may contain terminal escapes, direction-changing marks or lone surrogates.
"""

import re

# Controls except tab and newline; invisible and direction-changing marks; surrogates; noncharacters; tag characters.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_FORMULA = re.compile(r"\W*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def is_whole(text: str) -> bool:
    """Whether a text has no lone surrogate, so that it can be encoded as UTF-8."""
    return text.isascii() or not _SURROGATES.search(text)


def sanitize(text: str) -> str:
    """The text with every hidden character written out, U+202E as "[U+202E]"; C0 controls as Unicode's pictures."""
    return _HIDDEN.sub(_spell, text.replace("\r\n", "\n"))


def sanitize_line(text: str, limit: int) -> str:
    """The same on one line of about `limit` characters; of a longer one the middle is replaced by its length."""
    if len(text) > limit:
        text = f"{text[: limit * 3 // 4]} [{len(text) - limit:,} characters left out] {text[-(limit // 4) :]}"
    return sanitize(" ".join(text.split()))


def plain_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, whatever blanks, marks or quotes precede the sign."""
    return "'" + text if _FORMULA.match(text) else text


def _spell(match: re.Match) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"[U+{code:04X}]"
