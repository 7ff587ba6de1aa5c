"""What every command that runs models starts with: the default model, the processes that join, the first line."""

from collections.abc import Callable
from typing import Any

from em_jax.base import multihost, runtime
from em_jax.config import Config


def across_processes(work: Callable[[Any], None]) -> None:
    """Do `work(components)` in process 0, its calls to the engine repeated by the other processes.

    `components` is None where there is one process.
    """
    if multihost.size() == 1:
        work(None)
        return
    # Late, so that a wrong flag is reported before anything heavy is imported.
    from em_jax.runs import followers
    from em_jax.runs.components import Components

    channel = multihost.ControlChannel()
    with multihost.translate_failures():
        if not multihost.is_first():
            followers.run_follower(Components(), channel)
            return
        failed = True
        try:
            work(followers.leading(Components(), channel))
            failed = False
        finally:
            followers.send_done(channel, failed)


def model_line(config: Config, why: str) -> str:
    """The first line of a command's output: the model, why it is this one, its dtype, suite and judge."""
    from em_jax.runs import sources

    dtype = config.dtype + (", its projections in int8" if config.model.quantization == "int8" else "")
    line = f"model: {config.model.name} ({why}); {dtype}, suite {config.suite}, judge {sources.judge_name(config)}"
    if sources.is_organism(config):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    return line


def choose_model(name: str, processes: multihost.Group | None) -> tuple[str, str]:
    """runtime.choose_model, after this process is configured and has joined the others."""
    runtime.configure_jax()
    multihost.join(processes)
    return runtime.choose_model(name)
