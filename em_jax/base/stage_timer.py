"""Where a stage's time goes: loading, compiling, waiting for the device; the rest is the host's own work.

The kinds never overlap, so they and the rest make the whole. The device is busy nearly all the time that the host waits
for it; beside the host's own work it may be busy with what was dispatched before. So its idle time is at most what is
not waiting. On a CPU, which is host and device in one, a program may run where it is dispatched and is the host's
work then. Tracing is the host's work.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

LOADING, COMPILING, WAITING = KINDS = ("loading", "compiling", "waiting")
EVENTS = {"/jax/core/compile/backend_compile_duration": COMPILING, "/em_jax/waiting": WAITING}
"""What jax's monitoring tells: compiling, or reading a program compiled before; and `model/hosts.py:fetch`."""
WORDS = {LOADING: "loading", COMPILING: "compiling", WAITING: "waiting for the device"}
LEAST_S = 0.1
"""A stage that took less had nothing to do."""


class Clock:
    """Seconds by kind, of the thread that made it. What others do meanwhile holds nothing up, except where it waits for
    them: then their compiling, however many compile at once, is what the time goes to."""

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._beside: list[tuple[float, float]] = []
        self._thread = threading.get_ident()
        self._within = [0.0]

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """What is done inside is of this kind, except what is of another."""
        began = time.monotonic()
        self._within.append(0.0)
        try:
            yield
        finally:
            whole, inner = time.monotonic() - began, self._within.pop()
            self.seconds[kind] += max(0.0, whole - inner)
            self._within[-1] += whole

    def hear(self, event: str, seconds: float, **_: object) -> None:
        """A listener of jax.monitoring."""
        kind, now = EVENTS.get(event), time.monotonic()
        if kind and threading.get_ident() == self._thread:
            compiling = covered(self._beside, now - seconds, now) if kind == WAITING else 0.0
            self.seconds[COMPILING] += compiling
            self.seconds[kind] += seconds - compiling
            self._within[-1] += seconds
        elif kind == COMPILING:
            self._beside.append((now - seconds, now))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears inside what jax tells."""
        import jax

        jax.monitoring.register_event_duration_secs_listener(self.hear)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self.hear)


def covered(spans: Iterable[tuple[float, float]], began: float, ended: float) -> float:
    """How much of the time from `began` to `ended` lies in any of the spans."""
    whole, at = 0.0, began
    for start, stop in sorted(spans):
        start, stop = max(start, at), min(stop, ended)
        whole += max(0.0, stop - start)
        at = max(at, stop)
    return whole


def line(stage: str, budget: Mapping[str, float], whole: float) -> str:
    """A stage's part of `whole` seconds in words; `budget` as provenance.json has it."""
    seconds = budget["seconds"]
    told = [f"{stage} {seconds:.1f} s ({seconds / max(whole, 1e-9):.0%})"]
    if budget.get("tokens"):
        told.append(f"{budget['tokens']:,} tokens, {budget['tokens'] / max(seconds, 1e-9):,.0f}/s")
    told += [f"{words} {budget[kind] / max(seconds, 1e-9):.0%}" for kind, words in WORDS.items() if budget.get(kind)]
    return "time: " + "; ".join(told)
