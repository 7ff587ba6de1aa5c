"""SIGTERM, deferred to a moment at which stopping loses nothing."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is only recorded; yields a function that says whether it came. On exit it takes effect.

    Outside the main thread, which alone receives signals, nothing is deferred.
    """
    received: list[int] = []
    with on_sigterm(lambda number, frame: received.append(number)):
        yield lambda: bool(received)
    if received:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def on_sigterm(handler: Any) -> Iterator[None]:
    """Within, SIGTERM is handled so: `handler` is one of signal.signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
