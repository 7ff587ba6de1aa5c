"""The peak memory of a training step on a CPU: each side takes it in a process of its own, on the same 16 rows."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

STEPS = 2
"""Steps that are taken: the second one finds the memory that the first one kept."""


def peak_bytes(make_peer: Callable[[Any], Any], work: Any) -> int | None:
    """The most memory that a process held which loads the model and trains; None where that process died.

    Without the machine code that compiling takes for a moment the figure would be smaller; a run compiles too.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(make_peer, work, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _train(make_peer: Callable[[Any], Any], work: Any, sender: Connection) -> None:
    from em_jax.base import runtime, stage_timer

    runtime.configure_jax()
    peer = make_peer(work)
    peer.prepare(range(STEPS))
    for step in range(STEPS):
        peer.train(step)
    sender.send(stage_timer.peak_memory()[stage_timer.PEAK])
    sender.close()
