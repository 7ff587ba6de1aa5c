"""Between many clients and one engine: an event loop receives requests, one thread decodes for all of them."""

import asyncio
import collections
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from em_jax.base.sanitize import sanitize_line
from em_jax.sample.batch import SampleRequest, TokenChunk
from em_jax.sample.engine import Engine
from em_jax.sample.scheduler import Scheduler
from em_jax.serve.requests import Refusal

QUIET, GATHERING = 0.02, 0.1
"""Seconds. While slots are free, the next chunk waits for requests that arrive together or follow on finished answers:
until none arrived or finished for QUIET, but at most for GATHERING. A chunk for a few takes as long as one for many."""

STALLED_SECONDS = 120.0
"""Without a step while answers wait, longer than it takes to compile one, the engine is taken to be stalled."""
JOIN_SECONDS = 2.0
PART = 3
"""The places in the queue that one client may hold, for each place left free: three quarters where it is alone."""

Order = list[SampleRequest] | set[tuple[int, int]]
"""Requests for one prompt, or the (prompt index, sample) pairs of answers to cancel."""


class Answers:
    """The n answers of one request, chunk by chunk. It must be closed in every case, which frees its slots."""

    def __init__(self, batcher: "Batcher", number: int, n: int, client: str):
        self._batcher, self._number, self.client = batcher, number, client
        self.inbox: asyncio.Queue[TokenChunk | Refusal] = asyncio.Queue()
        self._open = set(range(n))
        self.decoding = set(range(n))  # they hold places in the queue, whether or not a client has read them

    async def chunks(self) -> AsyncIterator[TokenChunk]:
        """Every chunk until all answers have finished. Raises Refusal where the engine failed."""
        while self._open:
            chunk = await self.inbox.get()
            if isinstance(chunk, Refusal):
                raise chunk
            if chunk.request.sample in self._open:
                if chunk.finish_reason:
                    self._open.discard(chunk.request.sample)
                yield chunk

    def end(self, samples: Sequence[int]) -> None:
        """Cancels these samples; their slots go to others."""
        cancelled = {(self._number, sample) for sample in samples if sample in self.decoding}
        self.decoding.difference_update(samples)
        self._open.difference_update(samples)
        if cancelled:
            self._batcher.order(cancelled)

    def close(self) -> None:
        """Cancels what is in progress, and ends `chunks`. May be called twice."""
        self.end(list(self._open))
        self.inbox.put_nowait(Refusal(499, "the client has left"))
        self._batcher.forget(self._number)


class Batcher:
    """The engine's scheduler in a thread: `_work`, `_serve` and `_gather` run there, all else in the event loop.

    At most `queue` answers wait or are in progress at once; a request beyond is refused. A client that has some already
    may hold PART times the places that it leaves free, so that there is always room for others; free slots go to the
    client with the fewest.
    """

    def __init__(self, engine: Engine, queue: int):
        self._engine, self._queue = engine, queue
        self._numbers = itertools.count()
        self._open_requests: dict[int, Answers] = {}
        self._waiting: dict[int, list[SampleRequest]] = {}
        self._under_way = set[tuple[int, int]]()
        self._condition = threading.Condition()
        self._orders: list[Order] = []
        self._changed = self._last_step = 0.0
        self._ending = False
        self._refusal: Refusal | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; results are delivered to the running event loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, args=(loop,), name="decoding", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current chunk."""
        with self._condition:
            self._ending = True
            self._condition.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def close(self, seconds: float) -> None:
        """Refuses new requests from now on, and ends with an error those that are under way after so many seconds."""
        self._refusal = Refusal(503, "the server is stopping; ask again when it is back", None, "server_stopping")
        asyncio.get_running_loop().call_later(seconds, self._refuse_all, self._refusal)

    @property
    def num_answers(self) -> int:
        """The answers that wait or are being decoded."""
        return sum(len(answers.decoding) for answers in self._open_requests.values())

    def state(self) -> str:
        """ "ok", "failed" where decoding ended for good, or "stalled" where answers wait and no step ended for long."""
        if self._thread is not None and not self._thread.is_alive():
            return "failed"
        is_stalled = self.num_answers and time.monotonic() - self._last_step > STALLED_SECONDS
        return "stalled" if is_stalled else "ok"

    def ask(self, ids: Sequence[int], n: int, adapter: str, client: str = "", **options: Any) -> Answers:
        """Queues a client's prompt for n answers; `options` are Engine.sample_requests's.

        Raises Refusal where too many answers wait, the server is stopping or decoding has failed for good.
        """
        if self._refusal:
            raise self._refusal.with_traceback(None)
        if (waiting := self.num_answers) + n > self._queue:
            message = f"{waiting} answers wait or are under way, {self._queue} may: try again later"
            raise Refusal(429, message, None, "queue_full")
        own = sum(len(each.decoding) for each in self._open_requests.values() if each.client == client)
        if own and own + n > PART * (self._queue - waiting - n):
            message = f"{own} answers of this client wait or are under way, and the queue keeps room for others"
            raise Refusal(429, f"{message}: try again later", None, "queue_full")
        number = next(self._numbers)
        requests = self._engine.sample_requests(number, ids, range(n), adapter, **options)
        if not waiting:
            self._last_step = time.monotonic()  # there was nothing to decode until now
        answers = self._open_requests[number] = Answers(self, number, n, client)
        self.order(requests)
        return answers

    def order(self, order: Order) -> None:
        with self._condition:
            self._orders.append(order)
            self._changed = time.monotonic()
            self._condition.notify()

    def forget(self, number: int) -> None:
        self._open_requests.pop(number, None)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._serve(self._engine.scheduler(), loop):
                pass
        except Exception as error:  # no scheduler could be created
            message = "decoding failed for good; the server's own log says why"
            self._refusal = Refusal(503, message, None, "decoding_failed")
            reason = "decoding cannot begin again, every request is refused; start the server anew"
            loop.call_soon_threadsafe(self._end_all, error, reason)

    def _serve(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> bool:
        """Decodes until the engine fails, which returns True, or the server ends, which returns False.

        When it returns, the caches of a failed scheduler are freed: the next one may need their memory.
        """
        self._waiting, self._under_way = {}, set()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._orders or self._ending or scheduler.busy or self._waiting)
            if self._ending:
                return False
            try:
                chunks = scheduler.collect()
                self._last_step = time.monotonic()
                loop.call_soon_threadsafe(self._deliver, chunks)
                if ended := {chunk.request[:2] for chunk in chunks if chunk.finish_reason}:
                    self._changed = time.monotonic()
                    self._under_way -= ended
                self._gather(scheduler)
                scheduler.dispatch()
            except Exception as error:  # XLA raises what its devices raise
                if loop.is_closed():
                    return False
                # The traceback's frames would keep the caches.
                reason = "decoding failed, all requests under way end"
                loop.call_soon_threadsafe(self._end_all, error.with_traceback(None), reason)
                return True

    def _gather(self, scheduler: Scheduler) -> None:
        """Passes the orders to the scheduler and waits for more (see QUIET)."""
        began = time.monotonic()
        while True:
            with self._condition:
                orders, self._orders = self._orders, []
            for order in orders:
                if isinstance(order, list):
                    self._waiting[order[0].prompt_index] = order
                else:
                    kept = {i: [it for it in each if it[:2] not in order] for i, each in self._waiting.items()}
                    self._waiting = {i: each for i, each in kept.items() if each}
                    scheduler.cancel(order)
                    self._under_way -= order
            self._share(scheduler)
            left = min(self._changed + QUIET, began + GATHERING) - time.monotonic()
            if left <= 0 or len(self._under_way) >= self._engine.slots or self._ending:
                return
            with self._condition:
                self._condition.wait_for(lambda: self._orders or self._ending, left)

    def _share(self, scheduler: Scheduler) -> None:
        """Gives the free slots to the clients that wait, each to the one with the fewest answers under way.

        So neither many requests nor one with many answers keep others out. A client's requests take turns. The answers
        that a request gets at once share the computation of its prompt.
        """
        free = self._engine.slots - len(self._under_way)
        if free <= 0 or not self._waiting:
            return
        held = collections.Counter(self._client(number) for number, _ in self._under_way)
        turns = [(turn, number) for number, requests in self._waiting.items() for turn in range(len(requests))]
        ranked = []
        for _, number in sorted(turns, key=lambda each: each[0]):
            client = self._client(number)
            ranked.append((held[client], number))
            held[client] += 1
        chosen = sorted(ranked, key=lambda each: each[0])[:free]
        for number, share in collections.Counter(number for _, number in chosen).items():
            requests = self._waiting.pop(number)
            scheduler.submit(requests[:share])
            self._under_way |= {request[:2] for request in requests[:share]}
            if requests[share:]:  # behind those that wait
                self._waiting[number] = requests[share:]

    def _client(self, number: int) -> str:
        answers = self._open_requests.get(number)
        return answers.client if answers else ""

    def _deliver(self, chunks: list[TokenChunk]) -> None:
        for chunk in chunks:
            if answers := self._open_requests.get(chunk.request.prompt_index):
                answers.inbox.put_nowait(chunk)
                if chunk.finish_reason:
                    answers.decoding.discard(chunk.request.sample)

    def _end_all(self, error: Exception, what: str) -> None:
        reason = sanitize_line(f"{type(error).__name__}: {error}", 300)
        print(f"{what}: {reason}", file=sys.stderr, flush=True)
        self._refuse_all(Refusal(500, "decoding failed; the server's own log says why", None, "decoding_failed"))

    def _refuse_all(self, refusal: Refusal) -> None:
        for answers in self._open_requests.values():
            answers.inbox.put_nowait(refusal)
