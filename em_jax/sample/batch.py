"""The host's side of decoding: which request sits in which slot, and what it has drawn so far."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em_jax.base import host_arrays
from em_jax.lora.adapter import Adapter
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import Sharding
from em_jax.sample.decode import (
    DecodeOutput,
    DecodeState,
    PrefillOutput,
    SamplingParams,
    decode,
    empty_slots,
    insert,
    resize,
)


class SampleRequest(NamedTuple):
    """One answer that is wanted: sample `sample` of prompt `index`, and its row of Requests (scalars).

    The prompt has `length` tokens; with each token drawn come the `top_logprobs` so many at its place.
    """

    index: int
    sample: int
    length: int
    params: SamplingParams
    top_logprobs: int = 0


class TokenChunk(NamedTuple):
    """What an answer grew by: ids without the stop id, and "stop" (a stop id), "length" or None where it goes on.

    `logprobs` are those of everything drawn, the stop id's behind the others; `top_logprobs` has for each of `tokens`
    the ids and log-probabilities that were asked for.
    """

    request: SampleRequest
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    finish_reason: str | None


class DecodeBatch:
    """Answers under way at once, in `count` slots. Requests are admitted between chunks, when none is on the device.

    Every slot has the same room. It follows the longest answer, in steps, and is never less than `capacity`: where that
    is enough for all that will be asked it stays, and with it the shape of every program.
    """

    def __init__(
        self, model: Qwen2, adapter: Adapter | None, count: int, capacity: int, stop: Sequence[int], *, chunk: int,
        steer: np.ndarray | None = None, sharding: Sharding, thread: Executor | None = None
    ):  # fmt: skip
        adapters = 0 if adapter is None else next(iter(adapter.scale.values())).shape[-1]
        self._slots = empty_slots(model, count, capacity, adapters, sharding)
        self._model, self._adapter, self._chunk, self._sharding = model, adapter, chunk, sharding
        self._steer, self._stop = steer, jnp.asarray(stop, jnp.int32)
        self._least, self.capacity = capacity, capacity
        self._holders: list[SampleRequest | None] = [None] * count
        self._counts = [0] * count
        self._thread = thread
        self._admitted: list[tuple[DecodeOutput, Sequence[int]]] = []
        self._drawing: Callable[[], tuple[DecodeState, DecodeOutput]] | None = None
        self._released = np.zeros(count, bool)

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, holder in enumerate(self._holders) if holder is None]

    @property
    def holds(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, holder in enumerate(self._holders) if holder is not None]

    def admit(self, prefilled: PrefillOutput, requests: Sequence[tuple[int, SampleRequest]]) -> None:
        """Puts (row of `prefilled`, ticket) pairs into free slots and has their first tokens drawn."""
        slots = self.free[: len(requests)]
        more = len(self._holders) - len(requests)
        padded = [*requests, *[requests[0]] * more]
        for slot, (_, request) in zip(slots, requests, strict=True):
            self._holders[slot], self._counts[slot], self._released[slot] = request, 0, False
        self._resize(jax.tree.leaves(prefilled.v)[0].shape[-2])
        self._slots, emitted = insert(
            self._slots,
            prefilled,
            np.array([row for row, _ in padded], np.int32),
            np.array(slots + [0] * more, np.int32),
            np.int32(len(requests)),
            jax.tree.map(lambda *rows: np.stack(rows), *(request.params for _, request in padded)),
            self._stop,
            **self.static_options(),
        )
        self._admitted.append((emitted, slots))

    def start(self) -> None:
        """Has up to a chunk of tokens drawn in every slot that holds a request; does not wait for them."""
        if not self.holds:
            return
        if self._released.any():
            self._slots = self._slots._replace(active=self._slots.active & ~self._released)
            self._released[:] = False
        self._resize()
        how = {"steps": self._chunk, "steer": self._steer, "sharding": self._sharding, **self.static_options()}
        given = self._model, self._adapter, self._slots, self._stop
        if self._thread is None:
            drawn = decode(*given, **how)
            self._drawing = lambda: drawn
        else:
            self._drawing = self._thread.submit(decode, *given, **how).result

    def finish(self) -> list[TokenChunk]:
        """Waits for what was started, and gives the pieces drawn."""
        admitted, self._admitted = self._admitted, []
        chunks = [piece for emitted, slots in admitted for piece in self._collect(emitted, slots, range(len(slots)))]
        if self._drawing is not None:
            with host_arrays.waiting():
                (self._slots, emitted), self._drawing = self._drawing(), None
            every = range(len(self._holders))
            chunks += self._collect(emitted, every, every)
        return chunks

    def release(self, answers: Collection[tuple[int, int]]) -> None:
        """Forgets these (index, sample) answers; no more pieces of them come, and their slots are free."""
        for slot in self.holds:
            if self._holders[slot][:2] in answers:
                self._holders[slot], self._released[slot] = None, True

    def _resize(self, least: int = 0) -> None:
        """Room for a chunk more in every slot in use; far more than that is given back."""
        longest = max(self._holders[slot].length + self._counts[slot] for slot in self.holds)
        capacity = max(self._least, bucket(max(least, longest + self._chunk)))
        if capacity > self.capacity or 2 * capacity <= self.capacity:
            self._slots = resize(self._slots, capacity, sharding=self._sharding)
            self.capacity = capacity

    def static_options(self) -> dict[str, Any]:
        """What has to be compiled in: only what somebody wants is computed."""
        held = [self._holders[slot] for slot in self.holds]
        return {
            "use_top_p": any(request.params.top_p < 1 for request in held),
            "top_logprobs": max(request.top_logprobs for request in held),
        }

    def _collect(self, emitted: DecodeOutput, slots: Sequence[int], columns: Sequence[int]) -> list[TokenChunk]:
        """The pieces of those `slots` that hold a request, from their columns; where an answer ended, it is freed."""
        tokens, logprobs, real, top_logprobs, active = host_arrays.to_host(emitted)
        chunks = []
        for slot, column in zip(slots, columns, strict=True):
            if (request := self._holders[slot]) is None:
                continue
            mine = real[:, column]
            drawn = tokens[mine, column].tolist()
            self._counts[slot] += len(drawn)
            reason = None
            if not active[slot]:
                self._holders[slot] = None
                reason = "stop" if self._counts[slot] < int(request.params.limit) else "length"
            top: list[list[tuple[int, float]]] = [[] for _ in drawn]
            if request.top_logprobs:
                ids, chances = (x[mine, column, : request.top_logprobs].tolist() for x in top_logprobs)
                top = [list(zip(*each)) for each in zip(ids, chances)]
            size = len(drawn) + (reason == "stop")
            chunks.append(TokenChunk(request, drawn, logprobs[:size, column].tolist(), top, reason))
        return chunks


def bucket(size: int, least: int = 32) -> int:
    """The padded size for `size`: `least`, then powers of two and the halves between them."""
    power = least
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power
