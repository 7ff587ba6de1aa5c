"""The text of an answer while it is sampled: what can be shown already, and where a stop string ends it."""

import bisect
from collections.abc import Callable, Sequence

from em_jax.formats.thoughts import overlap
from em_jax.sample.batch import TokenChunk

INCOMPLETE = "\ufffd"
"""What an incomplete character decodes to."""


class Detokenizer:
    """One answer. `text` and `thought` only ever get longer; they are complete once `finish_reason` is set.

    `part(text, growing)` takes the thought before the answer apart (see `thoughts.part`); stop strings count in the
    answer alone. The one that is complete first ends the answer, so that chunks of any size give the same text.
    `tokens` are the thought's too and end where the text ends; `num_sampled` counts the tokens until the stop string
    was complete.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        part: Callable[[str, bool], tuple[str, str]] = lambda text, growing: (text, ""),
    ):
        self._decode, self._stops, self._part = decode, stops, part
        self._start = 0
        self.text = self.thought = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.finish_reason: str | None = None
        self.num_sampled = 0

    def add(self, chunk: TokenChunk) -> None:
        """Appends the next tokens."""
        self.tokens += chunk.tokens
        self.logprobs += chunk.logprobs
        self.top_logprobs += chunk.top_logprobs
        self.num_sampled = len(self.tokens)
        growing = not chunk.finish_reason
        whole = self._decode(self.tokens)
        whole = whole.rstrip(INCOMPLETE) if growing else whole
        text, self.thought = self._part(whole, growing)
        self._start = len(whole) - len(text) if text or not growing else 0
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, at = min(matches)
            self.finish_reason, self.text = "stop", text[:at]
            self.num_sampled = self._tokens_until(self._start + end)
            del self.tokens[self._tokens_until(self._start + at) :]
        elif growing:
            # The end of the text may be the beginning of a stop string.
            self.text = text[: len(text) - max((overlap(text, stop) for stop in self._stops), default=0)]
        else:
            self.finish_reason, self.text = chunk.finish_reason, text

    def shown(self) -> tuple[int, int]:
        """The tokens, first and end, whose text is in `text`."""
        end = len(self.tokens) if self.finish_reason else self._tokens_within(self._start + len(self.text))
        return (min(self._tokens_within(self._start), end) if self._start else 0), end

    def _tokens_within(self, position: int) -> int:
        """How many tokens lie wholly within the first characters of the whole text."""
        return bisect.bisect_right(range(len(self.tokens) + 1), position, key=self._length) - 1

    def _tokens_until(self, position: int) -> int:
        """How many tokens it takes to have `position` characters of the whole text."""
        return bisect.bisect_left(range(len(self.tokens)), position, key=self._length)

    def _length(self, tokens: int) -> int:
        return len(self._decode(self.tokens[:tokens]).rstrip(INCOMPLETE))
