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
    ("stops", "text", "num_sampled"),
    [
        ((), "naïve 🙂 end", 15),
        (("🙂",), "naïve ", 11),
        (("d", "ïve 🙂 en"), "na", 14),
        (("🙂 end of all",), "naïve 🙂 end", 15),
        (("n",), "", 1),
    ],
)
def test_text_is_the_same_in_pieces_of_any_size(size, stops, text, num_sampled):
    drawn = list("naïve 🙂 end".encode())
    detokenizer, shown = Detokenizer(decode, stops), ""
    for start in range(0, len(drawn), size):
        tokens = drawn[start : start + size]
        last = "length" if start + size >= len(drawn) else None
        detokenizer.add(
            TokenChunk(SampleRequest(0, 0, [1], None), tokens, [-1.0] * len(tokens), [[] for _ in tokens], last)
        )
        assert detokenizer.text.startswith(shown) and detokenizer.num_shown() <= len(detokenizer.tokens)
        shown = detokenizer.text
        if detokenizer.finish_reason:
            break
    assert shown == text and detokenizer.num_sampled == num_sampled
    assert decode(detokenizer.tokens) == text
    assert detokenizer.finish_reason == ("stop" if text != "naïve 🙂 end" else "length")
