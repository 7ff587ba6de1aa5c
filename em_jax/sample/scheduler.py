"""Who is served next: prompts wait, are prefilled with others of their length, and take slots as these become free."""

import collections
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from em_jax.sample.batch import DecodeBatch, SampleRequest, TokenChunk, bucket
from em_jax.sample.decode import PrefillOutput


class PromptRequest(NamedTuple):
    """A prompt's ids, its adapters' shares, and a ticket for each answer that is wanted of it."""

    ids: Sequence[int]
    adapter_mask: Float[np.ndarray, "S"] | None
    requests: Sequence[SampleRequest]


class Scheduler:
    """Prompts that wait and answers under way. Both may be added to and cancelled between steps and within.

    The one loop of continuous batching (Yu et al., Orca, OSDI 2022): `Engine.stream` gives it a closed set of prompts,
    the server those of all its clients as they come. A prompt is prefilled once for all its answers, in a pass of up to
    `rows(length)` prompts of one padded length; the longest waiting goes first.

    Several `running` take turns: while the host sees to one, the others draw.
    """

    def __init__(
        self,
        running: Sequence[DecodeBatch],
        prefill: Callable[[Sequence[PromptRequest]], PrefillOutput],
        rows: Callable[[int], int],
    ):
        self._running, self._prefill, self._rows = collections.deque(running), prefill, rows
        self._waiting: dict[int, collections.deque[tuple[int, PromptRequest]]] = {}
        self._arrivals = 0
        self._ready: collections.deque[tuple[int, SampleRequest]] = collections.deque()
        self._prefilled: PrefillOutput | None = None

    @property
    def busy(self) -> bool:
        """Whether any answer is still to come."""
        return bool(self._waiting or self._ready or any(running.holds for running in self._running))

    def submit(self, prompt_request: PromptRequest) -> None:
        """Adds a prompt, of one answer at least; its pieces come from the next steps."""
        self._waiting.setdefault(bucket(len(prompt_request.ids)), collections.deque()).append(
            (self._arrivals, prompt_request)
        )
        self._arrivals += 1

    def cancel(self, answers: Collection[tuple[int, int]]) -> None:
        """Forgets these (index, sample) answers, waiting or under way; no more pieces of them come."""

        def wanted(request: SampleRequest) -> bool:
            return (request.index, request.sample) not in answers

        for length, queue in list(self._waiting.items()):
            kept = [
                (number, prompt_request._replace(requests=list(filter(wanted, prompt_request.requests))))
                for number, prompt_request in queue
            ]
            self._set_queue(length, collections.deque(entry for entry in kept if entry[1].requests))
        self._ready = collections.deque(entry for entry in self._ready if wanted(entry[1]))
        for running in self._running:
            running.release(answers)

    def step(self) -> Iterator[list[TokenChunk]]:
        """One turn: gives, at once, what was drawn in some slots; then fills those that are free, with what may have
        been submitted meanwhile, and has a chunk more drawn in all."""
        running = self._running[0]
        self._running.rotate(-1)
        yield running.finish()
        while (free := len(running.free)) and (self._ready or self._waiting):
            if not self._ready:
                self._prefill_next()
            batch = [self._ready.popleft() for _ in range(min(len(self._ready), free))]
            running.admit(self._prefilled, batch)
        if not self._ready:
            self._prefilled = None
        running.start()

    def _prefill_next(self) -> None:
        """Prefills the prompt that has waited longest, and with it others of its padded length."""
        length = min(self._waiting, key=lambda length: self._waiting[length][0])
        queue = self._waiting[length]
        group = [queue.popleft()[1] for _ in range(min(len(queue), self._rows(length)))]
        self._set_queue(length, queue)
        self._prefilled = self._prefill(group)
        self._ready.extend(
            (row, request) for row, prompt_request in enumerate(group) for request in prompt_request.requests
        )

    def _set_queue(self, length: int, queue: collections.deque[tuple[int, PromptRequest]]) -> None:
        if queue:
            self._waiting[length] = queue
        else:
            del self._waiting[length]
