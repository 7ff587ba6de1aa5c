"""What every command that runs models begins with: the default model, the processes that join, the first line."""

from collections.abc import Callable
from typing import Any

from em_jax.base import multihost, runtime
from em_jax.config import Config


def conduct(work: Callable[[Any], None]) -> None:
    """Do `work(parts)` in the first of the processes that joined, its calls to the engine repeated by the others.

    `parts` are those shared with the others; None where there is one process.
    """
    # Late: a wrong flag is told before anything heavy is imported.
    if multihost.size() == 1:
        work(None)
        return
    from em_jax.runs import followers, sources

    channel = multihost.ControlChannel()
    with multihost.translate_failures():
        if not multihost.is_first():
            followers.run_follower(sources.Parts(), channel)
            return
        failed = True
        try:
            work(followers.leading(sources.Parts(), channel))
            failed = False
        finally:
            followers.done(channel, failed)


def about(first: Config, why: str) -> str:
    """The first line of a command's output: the model, why it is this one, and how it is asked."""
    from em_jax.runs import sources

    held = first.dtype + (", its projections in int8" if first.model.quantization == "int8" else "")
    line = f"model: {first.model.name} ({why}); {held}, suite {first.suite}, judge {sources.judge_name(first)}"
    if sources.is_organism(first):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    return line


def choose_model(name: str, processes: multihost.Group | None) -> tuple[str, str]:
    """runtime.choose_model, in a settled process that has joined the others: the first thing that needs jax."""
    runtime.begin()
    multihost.join(processes)
    return runtime.choose_model(name)
