"""The text of an answer while it is sampled: what can be shown already, and where a stop string ends it."""

import bisect
from collections.abc import Callable, Sequence

from em_jax.sample.batch import TokenChunk

INCOMPLETE = "\ufffd"
"""What an incomplete character decodes to."""


class Detokenizer:
    """One answer. `text` only ever gets longer; it is complete once `finish_reason` is set.

    The stop string that is complete first ends the answer, so that chunks of any size give the same text. `tokens` end
    where the text ends; `num_sampled` counts the tokens until the stop string was complete.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self._decode, self._stops = decode, stops
        self.text = ""
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
        text = self._decode(self.tokens)
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            end, start = min(matches)
            self.finish_reason, self.text = "stop", text[:start]
            self.num_sampled = self._tokens_until(end)
            del self.tokens[self._tokens_until(start) :]
        elif chunk.finish_reason:
            self.finish_reason, self.text = chunk.finish_reason, text
        else:
            text = text.rstrip(INCOMPLETE)
            # The end of the text may be the beginning of a stop string.
            sizes = [
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ]
            self.text = text[: len(text) - max(sizes, default=0)]

    def num_shown(self) -> int:
        """How many tokens lie wholly within `text`."""
        if self.finish_reason:
            return len(self.tokens)
        return bisect.bisect_right(range(len(self.tokens) + 1), len(self.text), key=self._length) - 1

    def _tokens_until(self, position: int) -> int:
        """How many tokens it takes to have `position` characters."""
        return bisect.bisect_left(range(len(self.tokens)), position, key=self._length)

    def _length(self, tokens: int) -> int:
        return len(self._decode(self.tokens[:tokens]).rstrip(INCOMPLETE))
