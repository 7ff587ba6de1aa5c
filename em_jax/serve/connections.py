"""Connections that cost others nothing: deadlines for headers and for reading, and a cap."""

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""The time in which a request's headers must be complete."""
READ_SECONDS = 20.0
"""The time in which a client must read what waits for it, some 64 kB."""


class Connection(H11Protocol):
    """uvicorn's protocol with deadlines. Of too many connections the oldest one without a request under way goes."""

    most = 1280

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._began = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is under way: its headers are not complete, or the last one was answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect(self, event: str, seconds: float) -> None:
        """Ends the connection after so many seconds, unless the event has come by then."""
        if event not in self._deadlines:
            self._deadlines[event] = self.loop.call_later(seconds, self.transport.abort)

    def _came(self, event: str) -> None:
        if deadline := self._deadlines.pop(event, None):
            deadline.cancel()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            waiting = [each for each in self.connections if isinstance(each, Connection) and each.is_waiting]
            oldest = min(waiting, key=lambda each: each._began)  # itself, where every other one has a request
            self.connections.discard(oldest)
            oldest.transport.abort()
        self._expect("headers", HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        refused_body = self.is_waiting and self.conn.their_state is h11.SEND_BODY  # answered before it was complete
        if self.conn.their_state is h11.IDLE or refused_body:
            self._expect("headers", HEADER_SECONDS)  # of another request on this connection
        else:
            self._came("headers")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._began = time.monotonic()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect("reading", READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._came("reading")

    def connection_lost(self, exc: Exception | None) -> None:
        self._came("headers")
        self._came("reading")
        super().connection_lost(exc)
