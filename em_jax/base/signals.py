"""SIGTERM, held back until a moment at which stopping is cheap."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def defer_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is noted and does nothing else; yields a function that says whether it came.

    On the way out it does what it would have done. Only the main thread hears signals; elsewhere nothing is held back.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def ignore_signals() -> Iterator[None]:
    """Within, SIGTERM does nothing: another process ends this one's work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
