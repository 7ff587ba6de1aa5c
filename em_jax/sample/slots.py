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
from em_jax.sample.decode import Emitted, Prefilled, Requests, Slots, decode, empty_slots, insert, resize


class Ticket(NamedTuple):
    """One answer that is wanted: sample `sample` of prompt `index`, and its row of Requests (scalars).

    The prompt has `length` tokens; with each token drawn come the `likeliest` so many at its place.
    """

    index: int
    sample: int
    length: int
    request: Requests
    likeliest: int = 0


class Piece(NamedTuple):
    """What an answer grew by: ids without the stop id, and "stop" (a stop id), "length" or None where it goes on.

    `logprobs` are those of everything drawn, the stop id's behind the others; `likeliest` has for each of `tokens` the
    ids and log-probabilities that were asked for.
    """

    ticket: Ticket
    tokens: list[int]
    logprobs: list[float]
    likeliest: list[list[tuple[int, float]]]
    finish_reason: str | None


class Running:
    """Answers under way at once, in `count` slots. Requests are admitted between chunks, when none is on the device.

    Every slot has the same room. It follows the longest answer, in steps, and is never less than `room`: where that is
    enough for all that will be asked it stays, and with it the shape of every program.
    """

    def __init__(
        self, model: Qwen2, adapter: Adapter | None, count: int, room: int, stop: Sequence[int], *, chunk: int,
        steer: np.ndarray | None = None, sharding: Sharding, thread: Executor | None = None
    ):  # fmt: skip
        adapters = 0 if adapter is None else next(iter(adapter.scale.values())).shape[-1]
        self._slots = empty_slots(model, count, room, adapters, sharding)
        self._model, self._adapter, self._chunk, self._sharding = model, adapter, chunk, sharding
        self._steer, self._stop = steer, jnp.asarray(stop, jnp.int32)
        self._least, self.room = room, room
        self._holders: list[Ticket | None] = [None] * count
        self._counts = [0] * count
        self._thread = thread
        self._admitted: list[tuple[Emitted, Sequence[int]]] = []
        self._drawing: Callable[[], tuple[Slots, Emitted]] | None = None
        self._released = np.zeros(count, bool)

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, holder in enumerate(self._holders) if holder is None]

    @property
    def holds(self) -> list[int]:
        """Slots with a request."""
        return [slot for slot, holder in enumerate(self._holders) if holder is not None]

    def admit(self, prefilled: Prefilled, tickets: Sequence[tuple[int, Ticket]]) -> None:
        """Puts (row of `prefilled`, ticket) pairs into free slots and has their first tokens drawn."""
        slots = self.free[: len(tickets)]
        more = len(self._holders) - len(tickets)
        padded = [*tickets, *[tickets[0]] * more]
        for slot, (_, ticket) in zip(slots, tickets, strict=True):
            self._holders[slot], self._counts[slot], self._released[slot] = ticket, 0, False
        self._make_room(jax.tree.leaves(prefilled.v)[0].shape[-2])
        self._slots, emitted = insert(
            self._slots,
            prefilled,
            np.array([row for row, _ in padded], np.int32),
            np.array(slots + [0] * more, np.int32),
            np.int32(len(tickets)),
            jax.tree.map(lambda *rows: np.stack(rows), *(ticket.request for _, ticket in padded)),
            self._stop,
            **self._asked(),
        )
        self._admitted.append((emitted, slots))

    def start(self) -> None:
        """Has up to a chunk of tokens drawn in every slot that holds a request; does not wait for them."""
        if not self.holds:
            return
        if self._released.any():
            self._slots = self._slots._replace(active=self._slots.active & ~self._released)
            self._released[:] = False
        self._make_room()
        how = {"steps": self._chunk, "steer": self._steer, "sharding": self._sharding, **self._asked()}
        given = self._model, self._adapter, self._slots, self._stop
        if self._thread is None:
            drawn = decode(*given, **how)
            self._drawing = lambda: drawn
        else:
            self._drawing = self._thread.submit(decode, *given, **how).result

    def finish(self) -> list[Piece]:
        """Waits for what was started, and gives the pieces drawn."""
        admitted, self._admitted = self._admitted, []
        pieces = [piece for emitted, slots in admitted for piece in self._collect(emitted, slots, range(len(slots)))]
        if self._drawing is not None:
            with host_arrays.waiting():
                (self._slots, emitted), self._drawing = self._drawing(), None
            every = range(len(self._holders))
            pieces += self._collect(emitted, every, every)
        return pieces

    def release(self, answers: Collection[tuple[int, int]]) -> None:
        """Forgets these (index, sample) answers; no more pieces of them come, and their slots are free."""
        for slot in self.holds:
            if self._holders[slot][:2] in answers:
                self._holders[slot], self._released[slot] = None, True

    def _make_room(self, least: int = 0) -> None:
        """Room for a chunk more in every slot in use; far more than that is given back."""
        longest = max(self._holders[slot].length + self._counts[slot] for slot in self.holds)
        room = max(self._least, bucket(max(least, longest + self._chunk)))
        if room > self.room or 2 * room <= self.room:
            self._slots = resize(self._slots, room, sharding=self._sharding)
            self.room = room

    def _asked(self) -> dict[str, Any]:
        """What has to be compiled in: only what somebody wants is computed."""
        held = [self._holders[slot] for slot in self.holds]
        return {
            "use_top_p": any(ticket.request.top_p < 1 for ticket in held),
            "likeliest": max(ticket.likeliest for ticket in held),
        }

    def _collect(self, emitted: Emitted, slots: Sequence[int], columns: Sequence[int]) -> list[Piece]:
        """The pieces of those `slots` that hold a request, from their columns; where an answer ended, it is freed."""
        tokens, logprobs, real, likeliest, active = host_arrays.fetch(emitted)
        pieces = []
        for slot, column in zip(slots, columns, strict=True):
            if (ticket := self._holders[slot]) is None:
                continue
            mine = real[:, column]
            drawn = tokens[mine, column].tolist()
            self._counts[slot] += len(drawn)
            reason = None
            if not active[slot]:
                self._holders[slot] = None
                reason = "stop" if self._counts[slot] < int(ticket.request.limit) else "length"
            top: list[list[tuple[int, float]]] = [[] for _ in drawn]
            if ticket.likeliest:
                ids, chances = (x[mine, column, : ticket.likeliest].tolist() for x in likeliest)
                top = [list(zip(*each)) for each in zip(ids, chances)]
            size = len(drawn) + (reason == "stop")
            pieces.append(Piece(ticket, drawn, logprobs[:size, column].tolist(), top, reason))
        return pieces


def bucket(size: int, least: int = 32) -> int:
    """The padded size for `size`: `least`, then powers of two and the halves between them."""
    power = least
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power
