"""Stop strings and characters cut in half, in pieces of every size."""

import pytest

from em_jax.sample.batch import SampleRequest, TokenChunk
from em_jax.serve.detokenizer import Detokenizer

pytestmark = pytest.mark.fast


def decode(tokens):
    """A token is a byte."""
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("stops", "text", "spent"),
    [
        ((), "naïve 🙂 end", 15),
        (("🙂",), "naïve ", 11),
        (("d", "ïve 🙂 en"), "na", 14),
        (("🙂 end of all",), "naïve 🙂 end", 15),
        (("n",), "", 1),
    ],
)
def test_text_is_the_same_in_pieces_of_any_size(size, stops, text, spent):
    drawn = list("naïve 🙂 end".encode())
    growing, shown = Detokenizer(decode, stops), ""
    for start in range(0, len(drawn), size):
        tokens = drawn[start : start + size]
        last = "length" if start + size >= len(drawn) else None
        growing.add(
            TokenChunk(SampleRequest(0, 0, [1], None), tokens, [-1.0] * len(tokens), [[] for _ in tokens], last)
        )
        assert growing.text.startswith(shown) and growing.shown() <= len(growing.tokens)
        shown = growing.text
        if growing.finish_reason:
            break
    assert shown == text and growing.spent == spent
    assert decode(growing.tokens) == text
    assert growing.finish_reason == ("stop" if text != "naïve 🙂 end" else "length")
