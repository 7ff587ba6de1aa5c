import pytest

from em_jax.base.sanitize import sanitize
from em_jax.report.text import MAX_LINES, count, excerpt, number, one_line

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain ünïcode 日本 עברית\n\ttab", "plain ünïcode 日本 עברית\n\ttab"),
        ("\x1b[31m", "␛[31m"),
        ("a\x00b\x7f", "a␀b␡"),
        ("\u202eabc\u2066", "[U+202E]abc[U+2066]"),
        ("\ud83d", "[U+D83D]"),
        ("\U000e0041", "[U+E0041]"),
        ("windows\r\nline", "windows\nline"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_hidden_characters_are_spelled_out_and_others_left(text, wanted):
    assert sanitize(text) == wanted
    sanitize(text).encode()


def test_every_character_can_be_written_after_visible():
    every = "".join(map(chr, range(0x110000)))
    assert len(sanitize(every).encode()) > 0x10000


def test_an_excerpt_says_how_much_there_was():
    assert excerpt("x" * 50, 10) == excerpt("x" * 50, 10)
    assert (excerpt("x" * 50, 10).text, excerpt("x" * 50, 10).total, excerpt("x" * 50, 10).cut) == ("x" * 10, 50, True)
    assert not excerpt("short", 10).cut
    assert excerpt("line\n" * 10_000, 60_000).text.count("\n") == MAX_LINES - 1
    assert excerpt("\n" * 10_000, 10_000).text == ""
    assert excerpt(None, 5).total == 0
    assert excerpt(12, 5).text == "12"


def test_one_line_is_short_and_on_one_line():
    assert one_line("a\n\n b\tc", 10) == "a b c"
    assert one_line("x" * 1_000_000, 20) == "x" * 19 + "…"


@pytest.mark.parametrize(
    ("value", "signed", "wanted"),
    [(0.5, False, "0.50"), (-2.94, True, "−2.94"), (0.1, True, "+0.10"), (-0.001, True, "0.00"), (None, False, "–")],
)
def test_number(value, signed, wanted):
    assert number(value, 2, signed) == wanted


def test_numbers_that_are_none_are_a_dash():
    assert number(float("nan")) == number(float("inf")) == number(True) == count(None) == "–"
