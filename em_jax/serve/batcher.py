"""Between many clients and one engine: requests come from an event loop, one thread decodes for all of them."""

import asyncio
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
from em_jax.serve.refusals import Refusal

QUIET, GATHERING = 0.02, 0.1
"""Seconds. While slots are free, the next chunk waits for requests that come together, or follow on answers that ended:
until nothing came or ended for QUIET, but no longer than GATHERING. A chunk for a few takes as long as one for many."""

Order = list[SampleRequest] | set[tuple[int, int]]
"""Requests for one prompt, or the (request, sample) answers that nobody wants any more."""


class Answers:
    """The n answers of one request: their pieces as they come. Close it, whatever happens; then nothing is wasted."""

    def __init__(self, batcher: "Batcher", number: int, n: int):
        self._batcher, self._number, self._n = batcher, number, n
        self._inbox: asyncio.Queue[TokenChunk | Refusal] = asyncio.Queue()
        self._open = set(range(n))

    async def chunks(self) -> AsyncIterator[TokenChunk]:
        """Every piece until all the answers have ended. Raises Refusal where the engine failed."""
        while self._open:
            chunk = await self._inbox.get()
            if isinstance(chunk, Refusal):
                raise chunk
            if chunk.request.sample in self._open:
                if chunk.finish_reason:
                    self._open.discard(chunk.request.sample)
                yield chunk

    def end(self, samples: Sequence[int]) -> None:
        """No more of these samples is wanted: their slots go to others."""
        gone = {(self._number, sample) for sample in samples if sample in self._open}
        self._open.difference_update(samples)
        if gone:
            self._batcher.order(gone)

    def close(self) -> None:
        """Ends what is still under way. May be called twice."""
        self.end(list(self._open))
        self._batcher.forget(self._number, self._n)

    def put(self, chunk: TokenChunk | Refusal) -> None:
        """Called in the event loop."""
        self._inbox.put_nowait(chunk)


class Batcher:
    """The engine's scheduler in a thread of its own. All but `_work`, `_serve`, `_gather` is called in the event loop.

    At most `queue` answers are wanted at once, waiting or under way; a request beyond is refused.
    """

    def __init__(self, engine: Engine, queue: int):
        self._engine, self._queue = engine, queue
        self._numbers = itertools.count()
        self._asking: dict[int, Answers] = {}
        self._wanted = 0
        self._news = threading.Condition()
        self._orders: list[Order] = []
        self._changed = 0.0
        self._ending = self._gave_up = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; results are delivered to the running event loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, args=(loop,), name="decoding", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the chunk that it is at."""
        with self._news:
            self._ending = True
            self._news.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def ask(self, ids: Sequence[int], n: int, adapter: str, **options: Any) -> Answers:
        """Asks for n answers to a prompt; `options` as of Engine.sample_requests. Raises Refusal if too many wait."""
        if self._wanted + n > self._queue:
            raise Refusal(
                429,
                f"{self._wanted} answers wait or are under way, {self._queue} may: try again later",
                None,
                "queue_full",
            )
        if self._gave_up:
            raise Refusal(503, "decoding failed for good; the server's own log says why", None, "decoding_failed")
        number = next(self._numbers)
        requests = self._engine.sample_requests(number, ids, range(n), adapter, **options)
        answers = self._asking[number] = Answers(self, number, n)
        self._wanted += n
        self.order(requests)
        return answers

    def order(self, order: Order) -> None:
        """Leaves an order to the thread."""
        with self._news:
            self._orders.append(order)
            self._changed = time.monotonic()
            self._news.notify()

    def forget(self, number: int, n: int) -> None:
        """A request is over: nothing is delivered to it any more."""
        if self._asking.pop(number, None):
            self._wanted -= n

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._serve(self._engine.scheduler(), loop):
                pass
        except Exception as error:  # of making a scheduler
            loop.call_soon_threadsafe(self._give_up, error)

    def _serve(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> bool:
        """Decodes until a failure, after which the next request deserves a fresh start, or False at the end.

        The caches of a scheduler that failed go with this call: the next one may need their room.
        """
        under_way = set[tuple[int, int]]()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._orders or self._ending or scheduler.busy)
            if self._ending:
                return False
            try:
                chunks = scheduler.collect()
                loop.call_soon_threadsafe(self._deliver, chunks)
                if ended := {chunk.request[:2] for chunk in chunks if chunk.finish_reason}:
                    self._changed = time.monotonic()
                    under_way -= ended
                self._gather(scheduler, under_way)
                scheduler.dispatch()
            except Exception as error:  # XLA raises what its devices raise
                if loop.is_closed():
                    return False
                # Without the traceback, whose frames hold the caches too.
                loop.call_soon_threadsafe(self._deliver, error.with_traceback(None))
                return True

    def _gather(self, scheduler: Scheduler, under_way: set[tuple[int, int]]) -> None:
        """Gives the scheduler what is ordered, and waits for more as QUIET says. `under_way` are all its answers."""
        began = time.monotonic()
        while True:
            with self._news:
                orders, self._orders = self._orders, []
            for order in orders:
                if isinstance(order, list):
                    scheduler.submit(order)
                    under_way |= {request[:2] for request in order}
                else:
                    scheduler.cancel(order)
                    under_way -= order
            left = min(self._changed + QUIET, began + GATHERING) - time.monotonic()
            if left <= 0 or len(under_way) >= self._engine.slots or self._ending:
                return
            with self._news:
                self._news.wait_for(lambda: self._orders or self._ending, left)

    def _deliver(self, result: list[TokenChunk] | Exception) -> None:
        if isinstance(result, Exception):
            self._end_all(result, "decoding failed, all requests under way end")
            return
        for chunk in result:
            if asking := self._asking.get(chunk.request.prompt_index):
                asking.put(chunk)

    def _give_up(self, error: Exception) -> None:
        self._gave_up = True
        self._end_all(error, "decoding cannot begin again, every request is refused; start the server anew")

    def _end_all(self, error: Exception, what: str) -> None:
        reason = sanitize_line(f"{type(error).__name__}: {error}", 300)
        print(f"{what}: {reason}", file=sys.stderr, flush=True)
        for answers in self._asking.values():
            answers.put(Refusal(500, "decoding failed; the server's own log says why", None, "decoding_failed"))
