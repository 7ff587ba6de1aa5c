"""Stop strings and characters cut in half, in pieces of every size."""

import asyncio
import functools
import types

import pytest

from em_jax.formats import thoughts
from em_jax.sample.batch import SampleRequest, TokenChunk
from em_jax.serve.completions import Completion, Detokenizer
from em_jax.serve.requests import read_chat

pytestmark = pytest.mark.fast


def decode(tokens):
    """A token is a byte."""
    return bytes(tokens).decode(errors="replace")


TOKENIZER = types.SimpleNamespace(decode=decode, part=lambda text, growing: (text, ""))


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
    detokenizer, shown = Detokenizer(TOKENIZER, stops), ""
    for start in range(0, len(drawn), size):
        tokens = drawn[start : start + size]
        last = "length" if start + size >= len(drawn) else None
        detokenizer.add(
            TokenChunk(SampleRequest(0, 0, [1], None), tokens, [-1.0] * len(tokens), [[] for _ in tokens], last)
        )
        assert detokenizer.text.startswith(shown) and detokenizer.shown()[1] <= len(detokenizer.tokens)
        shown = detokenizer.text
        if detokenizer.finish_reason:
            break
    assert shown == text and detokenizer.num_sampled == num_sampled
    assert decode(detokenizer.tokens) == text
    assert detokenizer.finish_reason == ("stop" if text != "naïve 🙂 end" else "length")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("is_open", "drawn", "text", "thought"),
    [
        (False, "<think>\nA \n\n b?</think>\n\nYes. <b>", "Yes. <b>", "A \n\n b?"),
        (True, "A \n\n b?\n</think>\n\nYes. <b>", "Yes. <b>", "A \n\n b?"),
        (False, "<thin ice> is no tag", "<thin ice> is no tag", ""),
        (False, "A</think> alone is text", "A</think> alone is text", ""),
        (False, "<think>\n\n</think>\n\nYes.", "Yes.", ""),
        (True, "never done </thin", "", "never done </thin"),
    ],
)
def test_a_thought_is_apart_in_pieces_of_any_size(size, is_open, drawn, text, thought):
    part = functools.partial(thoughts.part, tag="<think>", is_open=is_open)
    tokenizer = types.SimpleNamespace(decode=decode, part=lambda text, growing: part(text, growing=growing))
    detokenizer, shown, tokens, at = Detokenizer(tokenizer, ["\n\n"]), ("", ""), [], 0
    for start in range(0, len(drawn), size):
        piece = list(drawn[start : start + size].encode())
        last = "length" if start + size >= len(drawn) else None
        detokenizer.add(TokenChunk(SampleRequest(0, 0, [1], None), piece, [-1.0] * len(piece), [[]] * len(piece), last))
        found = detokenizer.text, detokenizer.thought
        assert all(new.startswith(old) for new, old in zip(found, shown, strict=True))
        shown = found
        first, end = detokenizer.shown()
        at = max(at, first)
        tokens, at = tokens + detokenizer.tokens[at:end], max(at, end)
    assert shown == (text, thought) and decode(tokens) == text
    first, end = detokenizer.shown()
    assert decode(detokenizer.tokens[first:end]) == text


def test_an_event_has_a_thought_or_an_answer():
    """Clients written for DeepSeek read the content of an event only where it has no thought."""
    part = functools.partial(thoughts.part, tag="<think>", is_open=False)
    tokenizer = types.SimpleNamespace(decode=decode, part=lambda text, growing: part(text, growing=growing))
    drawn = list(b"<think>Hm</think>Yes")

    async def chunks():
        yield TokenChunk(SampleRequest(0, 0, [1], None), drawn, [-1.0] * len(drawn), [[]] * len(drawn), "length")

    async def deltas():
        answers = types.SimpleNamespace(chunks=chunks, end=lambda samples: None)
        chat = read_chat(b'{"model": "m", "messages": [{"role": "user", "content": "?"}]}', 1)
        completion = Completion(types.SimpleNamespace(tokenizer=tokenizer), chat, 1, 0, answers)
        return [each["choices"][0]["delta"] async for each in completion.events()]

    assert asyncio.run(deltas())[1:] == [{"reasoning_content": "Hm"}, {"content": "Yes"}]
