"""The host's side of decoding: which request is in which slot, and how many tokens its answer has."""

import itertools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from em_jax.base import host_arrays
from em_jax.model.kernels.cpu_threads import dispatch
from em_jax.model.sharding import Sharding
from em_jax.sample.decode import DecodeOutput, DecodeState, PrefillOutput, SamplingParams, capacity_of, insert, resize


class SampleRequest(NamedTuple):
    """A request for one answer: sample number `sample` to prompt number `prompt_index`, whose token ids are `prompt`.

    With each token come the `top_logprobs` most probable ones.
    """

    prompt_index: int
    sample: int
    prompt: Sequence[int]
    params: SamplingParams
    top_logprobs: int = 0


class TokenChunk(NamedTuple):
    """The next tokens of an answer.

    tokens: token ids, without the stop id.
    logprobs: their log-probabilities, and that of the stop id after them.
    top_logprobs: for each of `tokens` the ids and log-probabilities of the most probable tokens.
    finish_reason: "stop" (a stop id), "length" (the answer has all its tokens), None where it is unfinished.
    """

    request: SampleRequest
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish_reason: str | None


class DecodeBatch:
    """Answers that are decoded together, in a fixed number of slots.

    Requests are admitted between chunks: after `collect` and before `start`. All slots have the same capacity in
    tokens. It grows and shrinks with the longest answer, in bucket sizes, never below the initial one: while that
    suffices, no shape changes and nothing is compiled again. `decode` is the function of that name with the arguments
    that stay the same; the executor, if there is one, calls it.
    """

    def __init__(
        self,
        state: DecodeState,
        decode: Callable[..., tuple[DecodeState, DecodeOutput]],
        stop: Array,
        chunk: int,
        sharding: Sharding,
        executor: Executor | None = None,
    ):
        self._state, self._decode, self._stop, self._chunk, self._sharding = state, decode, stop, chunk, sharding
        self._executor, self._min_capacity = executor, capacity_of(state)
        self._requests: list[SampleRequest | None] = [None] * len(state.length)
        self._counts = [0] * len(state.length)
        self._first_tokens: list[tuple[DecodeOutput, Sequence[int]]] = []
        self._decoded: Callable[[], tuple[DecodeState, DecodeOutput]] | None = None

    @property
    def free(self) -> list[int]:
        """The slots without a request."""
        return [slot for slot, request in enumerate(self._requests) if request is None]

    @property
    def busy(self) -> bool:
        """Whether any slot has a request."""
        return any(self._requests)

    def admit(self, prompts: PrefillOutput, requests: Sequence[tuple[int, SampleRequest]]) -> None:
        """Puts (row of `prompts`, request) pairs into free slots and dispatches the sampling of their first tokens."""
        slots, padding = self.free[: len(requests)], len(self._requests) - len(requests)
        for slot, (_, request) in zip(slots, requests, strict=True):
            self._requests[slot], self._counts[slot] = request, 0
        self._resize(capacity_of(prompts))
        padded = [*requests, *[requests[0]] * padding]
        self._state, output = insert(
            self._state,
            prompts,
            np.array([row for row, _ in padded], np.int32),
            np.array(slots + [0] * padding, np.int32),
            np.int32(len(requests)),
            jax.tree.map(lambda *rows: np.stack(rows), *(request.params for _, request in padded)),
            self._stop,
            **self._static_options(),
        )
        self._first_tokens.append((output, slots))

    def start(self) -> None:
        """Dispatches a chunk for the slots that have a request."""
        if not self.busy:
            return
        self._resize()
        occupied = np.array([request is not None for request in self._requests])
        self._decoded = dispatch(
            self._executor, self._decode, self._state, occupied, stop=self._stop, **self._static_options()
        )

    def collect(self) -> list[TokenChunk]:
        """Waits for all that was dispatched and returns its tokens; slots whose answers have ended become free."""
        first_tokens, self._first_tokens = self._first_tokens, []
        chunks = [chunk for output, slots in first_tokens for chunk in self._read(output, slots)]
        if self._decoded is not None:
            with host_arrays.waiting():
                (self._state, output), self._decoded = self._decoded(), None
            chunks += self._read(output, range(len(self._requests)))
        return chunks

    def release(self, answers: Collection[tuple[int, int]]) -> None:
        """Frees the slots of these (prompt index, sample) answers; `collect` returns no more of them."""
        for slot, request in enumerate(self._requests):
            if request is not None and request[:2] in answers:
                self._requests[slot] = None

    def _resize(self, least: int = 0) -> None:
        """Makes room for a chunk more in every slot in use, and for `least`; shrinks when half is unused."""
        lengths = [len(request.prompt) + count for request, count in zip(self._requests, self._counts) if request]
        capacity = max(self._min_capacity, bucket(max(least, max(lengths) + self._chunk)))
        if capacity > capacity_of(self._state) or 2 * capacity <= capacity_of(self._state):
            self._state = resize(self._state, capacity, sharding=self._sharding)

    def _static_options(self) -> dict[str, Any]:
        """Static jit arguments: top-p and top_logprobs are compiled only where a request uses them."""
        requests = [request for request in self._requests if request]
        return {
            "use_top_p": any(request.params.top_p < 1 for request in requests),
            "top_logprobs": max(request.top_logprobs for request in requests),
        }

    def _read(self, output: DecodeOutput, slots: Sequence[int]) -> list[TokenChunk]:
        """The chunks of those of `slots` that have a request; the n-th of them is in column n."""
        tokens, logprobs, in_answer, top_logprobs = host_arrays.to_host(output)
        chunks = []
        for column, slot in enumerate(slots):
            if (request := self._requests[slot]) is None:
                continue
            rows = in_answer[:, column]
            ids = tokens[rows, column].tolist()
            self._counts[slot] += len(ids)
            # An answer goes on through the whole chunk unless it ends.
            reason = None if len(ids) == len(tokens) else "stop"
            if self._counts[slot] >= int(request.params.max_new_tokens):
                reason = "length"
            if reason:
                self._requests[slot] = None
            pairs = (x[rows, column, : request.top_logprobs].tolist() for x in top_logprobs)
            top = [list(zip(*pair)) for pair in zip(*pairs)]
            size = len(ids) + (reason == "stop")
            chunks.append(TokenChunk(request, ids, logprobs[:size, column].tolist(), top, reason))
        return chunks


def bucket(size: int, least: int = 64) -> int:
    """The padded size for `size`: `least`, then powers of two and the halves between them."""
    sizes = (least * 2**power * halves // 2 for power in itertools.count() for halves in (2, 3))
    return next(padded for padded in sizes if padded >= size)
