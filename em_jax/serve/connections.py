"""Connections that cost others nothing: deadlines for headers and for reading, a cap, and a bounded log."""

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""The time in which a request's headers must be complete."""
READ_SECONDS = 20.0
"""The time in which a client must read what waits for it, some 64 kB."""
LOG_LINES, LOG_SECONDS = 20, 60.0
"""At most so many lines of the HTTP server's log in so many seconds."""
_FULL = b'{"error": {"message": "too many connections: try again later", "type": "server_error", "code": null}}'
_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)


class Connection(H11Protocol):
    """uvicorn's protocol with deadlines. Of too many connections the oldest one without a request under way goes."""

    most = 1280

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None
        self._began = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is under way: its headers are not complete, or the last one was answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            others = [each for each in self.connections - {self} if isinstance(each, Connection) and each.is_waiting]
            if others:
                oldest = min(others, key=lambda each: each._began)
                self.connections.discard(oldest)
                oldest.transport.abort()
            else:
                transport.write(_RESPONSE)
                transport.close()
        self._headers_due = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        refused_body = self.is_waiting and self.conn.their_state is h11.SEND_BODY  # answered before it was complete
        if self.conn.their_state is not h11.IDLE and not refused_body:
            self._headers_due = _cancelled(self._headers_due)
        elif self._headers_due is None:  # the beginning of another request on this connection
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._began = time.monotonic()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_due = _cancelled(self._reading_due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_due, self._reading_due = _cancelled(self._headers_due), _cancelled(self._reading_due)
        super().connection_lost(exc)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, in the place of a timer that no longer counts."""
    if timer is not None:
        timer.cancel()
    return None


class BoundedLog(logging.Filter):
    """Lets LOG_LINES records pass in LOG_SECONDS; the first one after that tells how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._passed = -LOG_SECONDS, 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since > LOG_SECONDS:
            if (left_out := self._passed - LOG_LINES) > 0:
                record.msg = f"({left_out:,} lines were left out) {record.msg}"
            self._since, self._passed = now, 0
        self._passed += 1
        return self._passed <= LOG_LINES
