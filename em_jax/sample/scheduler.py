"""Continuous batching: prompts wait, are prefilled with others of their length, and take slots as these become free."""

import collections
from collections.abc import Callable, Collection, Sequence

from em_jax.sample.batch import DecodeBatch, SampleRequest, TokenChunk, bucket
from em_jax.sample.decode import PrefillOutput


class Scheduler:
    """The queue of requests and the batches that decode them (Yu et al., Orca, OSDI 2022).

    Call `collect`, then `dispatch`, while it is `busy`; requests may be submitted and cancelled before each of them.
    `Engine.stream` submits a closed set of prompts, the server those of its clients as they come. `prefill` takes the
    requests of each of up to `rows(length)` prompts of one padded length; the longest waiting goes first. A prompt is
    prefilled once for all its requests.

    Batches take turns: while the host reads the tokens of one, the others decode.
    """

    def __init__(
        self,
        batches: Sequence[DecodeBatch],
        prefill: Callable[[Sequence[Sequence[SampleRequest]]], PrefillOutput],
        rows: Callable[[int], int],
    ):
        self._batches, self._prefill, self._rows = collections.deque(batches), prefill, rows
        self._waiting: list[tuple[int, Sequence[SampleRequest]]] = []
        self._ready: collections.deque[tuple[int, SampleRequest]] = collections.deque()
        self._prompts: PrefillOutput | None = None

    @property
    def busy(self) -> bool:
        """Whether any answer is unfinished."""
        return self._queued or any(batch.busy for batch in self._batches)

    @property
    def _queued(self) -> bool:
        return bool(self._ready or self._waiting)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Adds the requests for one prompt, at least one."""
        self._waiting.append((bucket(len(requests[0].prompt)), requests))

    def cancel(self, answers: Collection[tuple[int, int]]) -> None:
        """Drops these (index, sample) answers, queued or being decoded; `collect` returns no more of them."""
        left = [(length, [each for each in requests if each[:2] not in answers]) for length, requests in self._waiting]
        self._waiting = [entry for entry in left if entry[1]]
        self._ready = collections.deque(entry for entry in self._ready if entry[1][:2] not in answers)
        for batch in self._batches:
            batch.release(answers)

    def collect(self) -> list[TokenChunk]:
        """Waits for the batch whose turn it is and returns the tokens that it has sampled."""
        return self._batches[0].collect()

    def dispatch(self) -> None:
        """Fills the free slots of that batch, dispatches its next chunk and gives the turn to the next batch."""
        batch = self._batches[0]
        while (free := len(batch.free)) and self._queued:
            if not self._ready:
                self._prefill_next()
            assert self._prompts is not None
            batch.admit(self._prompts, [self._ready.popleft() for _ in range(min(len(self._ready), free))])
        if not self._ready:
            self._prompts = None
        batch.start()
        self._batches.rotate(-1)

    def _prefill_next(self) -> None:
        """Prefills the prompt that has waited longest, and with it others of its padded length."""
        length = self._waiting[0][0]
        chosen = [i for i, (other, _) in enumerate(self._waiting) if other == length][: self._rows(length)]
        group = [self._waiting.pop(i)[1] for i in reversed(chosen)][::-1]
        self._prompts = self._prefill(group)
        self._ready.extend((row, request) for row, requests in enumerate(group) for request in requests)
