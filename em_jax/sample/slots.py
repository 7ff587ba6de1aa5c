"""The host's side of decoding: which request sits in which slot, and what it has drawn so far."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em_jax.lora.adapter import Adapter
from em_jax.model import hosts
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import Sharding
from em_jax.sample.decode import Emitted, Prefilled, Requests, decode, empty_slots, insert


class Ticket(NamedTuple):
    """One answer that is wanted: sample `sample` of prompt `index`, and its row of Requests (scalars)."""

    index: int
    sample: int
    request: Requests


class Drawn(NamedTuple):
    """A whole answer: its ids without the stop id, whether a stop id ended it, and the summed log-probability."""

    ticket: Ticket
    tokens: list[int]
    stopped: bool
    logprob: float


class Running:
    """All answers under way at once. Requests are admitted between chunks; each call yields the answers that ended."""

    def __init__(
        self, model: Qwen2, adapter: Adapter | None, count: int, room: int, stop: Sequence[int], *, chunk: int,
        use_top_p: bool, steer: jax.Array | None = None, sharding: Sharding
    ):  # fmt: skip
        adapters = 0 if adapter is None else next(iter(adapter.scale.values())).shape[-1]
        self._slots = empty_slots(model, count, room, adapters, sharding)
        self._model, self._adapter, self._chunk, self._sharding = model, adapter, chunk, sharding
        self._use_top_p, self._steer = use_top_p, steer
        self._stop = jnp.asarray(stop, jnp.int32)
        self._holders: list[Ticket | None] = [None] * count
        self._tokens: list[list[int]] = [[] for _ in range(count)]

    @property
    def free(self) -> list[int]:
        """Slots without a request."""
        return [slot for slot, holder in enumerate(self._holders) if holder is None]

    def admit(self, prefilled: Prefilled, tickets: Sequence[tuple[int, Ticket]]) -> Iterator[Drawn]:
        """Puts (row of `prefilled`, ticket) pairs into free slots and draws their first tokens."""
        slots = self.free[: len(tickets)]
        more = len(self._holders) - len(tickets)
        padded = [*tickets, *[tickets[0]] * more]
        for slot, (_, ticket) in zip(slots, tickets, strict=True):
            self._holders[slot], self._tokens[slot] = ticket, []
        self._slots, emitted = insert(
            self._slots,
            prefilled,
            np.array([row for row, _ in padded], np.int32),
            np.array(slots + [0] * more, np.int32),
            np.int32(len(tickets)),
            jax.tree.map(lambda *rows: np.stack(rows), *(ticket.request for _, ticket in padded)),
            self._stop,
            use_top_p=self._use_top_p,
        )
        return self._collect(emitted, slots, range(len(slots)))

    def advance(self) -> Iterator[Drawn]:
        """Draws up to a chunk of tokens in every slot that holds a request."""
        slots = [slot for slot, holder in enumerate(self._holders) if holder is not None]
        if not slots:
            return iter(())
        self._slots, emitted = decode(
            self._model, self._adapter, self._slots, self._stop, steps=self._chunk, use_top_p=self._use_top_p,
            steer=self._steer, sharding=self._sharding
        )  # fmt: skip
        return self._collect(emitted, slots, slots)

    def _collect(self, emitted: Emitted, slots: Sequence[int], columns: Sequence[int]) -> Iterator[Drawn]:
        """Takes the slots' tokens from their columns, and yields the answers that are whole."""
        tokens, real, active, logprob = hosts.fetch(emitted)
        for slot, column in zip(slots, columns, strict=True):
            self._tokens[slot] += tokens[real[:, column], column].tolist()
        for slot in slots:
            ticket = self._holders[slot]
            if not active[slot]:
                self._holders[slot] = None
                drawn = self._tokens[slot]
                yield Drawn(ticket, drawn, len(drawn) < int(ticket.request.limit), float(logprob[slot]))
