"""Where a stage's time goes: loading, compiling, waiting for the device; the rest (tracing too) is work of the host.

The kinds do not overlap. The device is busy nearly all the time that the host waits for it and may be busy during work
of the host, so its idle time is at most the time that is not waiting. On a CPU a program may run where it is
dispatched, and then counts as work of the host.
"""

import contextlib
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator

LOADING, COMPILING, WAITING = KINDS = ("loading", "compiling", "waiting")
EVENTS = {"/jax/core/compile/backend_compile_duration": COMPILING, "/em_jax/waiting": WAITING}
"""Events of jax.monitoring: compiling, or reading a compiled program; and waiting, from base/host_arrays.py."""
MEMORY = PEAK, DEVICE_PEAK = "peak_bytes", "device_peak_bytes"
"""A stage's most memory in use: of this process, and of one device since the process began."""


class Clock:
    """Seconds by kind of the thread that created it.

    Work of other threads counts only while this thread waits for them: that time is compiling if any of them compiles.
    """

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._other_compiles: list[tuple[float, float]] = []
        self._thread = threading.get_ident()
        self._nested = [0.0]

    @contextlib.contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """The time within counts as this kind, except where it counts as another."""
        began = time.monotonic()
        self._nested.append(0.0)
        try:
            yield
        finally:
            whole, nested = time.monotonic() - began, self._nested.pop()
            self.seconds[kind] += max(0.0, whole - nested)
            self._nested[-1] += whole

    def on_event(self, event: str, seconds: float, **_: object) -> None:
        """A listener of jax.monitoring."""
        kind, now = EVENTS.get(event), time.monotonic()
        if kind and threading.get_ident() == self._thread:
            compiling = covered(self._other_compiles, now - seconds, now) if kind == WAITING else 0.0
            self.seconds[COMPILING] += compiling
            self.seconds[kind] += seconds - compiling
            self._nested[-1] += seconds
        elif kind == COMPILING:
            self._other_compiles.append((now - seconds, now))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, events of jax are counted."""
        import jax

        jax.monitoring.register_event_duration_secs_listener(self.on_event)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self.on_event)


def covered(spans: Iterable[tuple[float, float]], began: float, ended: float) -> float:
    """How much of the time from `began` to `ended` is in the union of the spans."""
    total, counted_to = 0.0, began
    for start, stop in sorted(spans):
        start, stop = max(start, counted_to), min(stop, ended)
        total += max(0.0, stop - start)
        counted_to = max(counted_to, stop)
    return total


def reset_peak() -> None:
    """Begin a new measurement of this process's peak memory, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> dict[str, int]:
    """Bytes by PEAK and, on an accelerator, DEVICE_PEAK. The process's is since `reset_peak`, else since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        status = pathlib.Path("/proc/self/status").read_text()
        peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    jax = sys.modules.get("jax")
    stats = [device.memory_stats() or {} for device in jax.local_devices()] if jax else []
    device = max((each.get("peak_bytes_in_use", 0) for each in stats), default=0)
    return {PEAK: peak} | ({DEVICE_PEAK: device} if device else {})
