"""The peak memory of a training step on a CPU: each side takes it in a process of its own, on the same 16 rows."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

STEPS = 2
"""Steps that are taken: the second one finds the memory that the first one kept."""


def peak_bytes(make_peer: Callable[[Any], Any], work: Any) -> int | None:
    """The most memory that a process held which loads the model and trains; None where that process died.

    Without the machine code that compiling takes for a moment the figure would be smaller; a run compiles too.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_train, make_peer, work).result()
        except BrokenProcessPool:
            return None


def _train(make_peer: Callable[[Any], Any], work: Any) -> int:
    from em_jax.base import runtime, stage_timer

    runtime.configure_jax()
    peer = make_peer(work)
    peer.prepare(range(STEPS))
    for step in range(STEPS):
        peer.train(step)
    return stage_timer.peak_memory()[stage_timer.PEAK]
