"""An answer as it grows: the text that can be shown already, and where a stop string ends it."""

import bisect
from collections.abc import Callable, Sequence

from em_jax.sample.batch import TokenChunk

INCOMPLETE = "\ufffd"
"""What the first bytes of a character decode to."""


class Detokenizer:
    """One answer. `text` only ever gets longer; it is whole once `finish_reason` is set.

    Of several stop strings the one that is complete first ends the answer, so that pieces of any size give the same
    text. `tokens` are cut where the text is; `spent` counts those drawn until the stop string was complete.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self._decode, self._stops = decode, stops
        self.text = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[list[tuple[int, float]]] = []
        self.finish_reason: str | None = None
        self.spent = 0

    def add(self, chunk: TokenChunk) -> None:
        """Takes what was drawn next."""
        self.tokens += chunk.tokens
        self.logprobs += chunk.logprobs
        self.top_logprobs += chunk.top_logprobs
        self.spent = len(self.tokens)
        whole = self._decode(self.tokens)
        ends = [(place + len(stop), place) for stop in self._stops if (place := whole.find(stop)) >= 0]
        if ends:
            end, begin = min(ends)
            self.finish_reason, self.text = "stop", whole[:begin]
            self.spent = self._reaching(end)
            del self.tokens[self._reaching(begin) :]
        elif chunk.finish_reason:
            self.finish_reason, self.text = chunk.finish_reason, whole
        else:
            whole = whole.rstrip(INCOMPLETE)
            self.text = whole[: len(whole) - self._held_back(whole)]

    def shown(self) -> int:
        """How many tokens lie wholly within `text`."""
        if self.finish_reason:
            return len(self.tokens)
        return bisect.bisect_right(range(len(self.tokens) + 1), len(self.text), key=self._length) - 1

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        sizes = [size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return max(sizes, default=0)

    def _reaching(self, place: int) -> int:
        """How many tokens it takes to have `place` characters."""
        return bisect.bisect_left(range(len(self.tokens)), place, key=self._length)

    def _length(self, tokens: int) -> int:
        return len(self._decode(self.tokens[:tokens]).rstrip(INCOMPLETE))
