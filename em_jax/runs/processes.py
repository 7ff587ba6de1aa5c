"""What every command that runs models starts with: the default model, the processes that join, the runs of a plan."""

import dataclasses
from collections.abc import Callable
from typing import Any

from em_jax.base import errors, multihost, runtime
from em_jax.config import Config
from em_jax.runs.flags import Plan


def across_processes(work: Callable[[Any], None]) -> None:
    """Do `work(components)` in process 0; of several the others repeat its calls, of one `components` is None."""
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
            channel.send(["done", {"failed": failed}])  # the run is over and its files are written


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


def run_plan(plan: Plan, why: str, components: Any = None) -> None:
    """Do the runs of a plan in process 0; `components` repeat its calls in the other processes."""
    from em_jax.runs import dry_run, events, placement, series, tracking
    from em_jax.runs.components import Components

    configs = tuple(series.resolve(config) for config in plan.configs)
    with tracking.trackers(() if plan.dry_run else plan.log) as listeners:
        if plan.json:
            listeners.insert(0, events.JsonLines())

        def tell(event: events.Event) -> None:
            for listener in listeners:
                listener(event)

        def say(line: str) -> None:
            if plan.json:
                tell({"event": "note", "text": line})
            else:
                print(line, flush=True)

        say(model_line(configs[0], why))
        components = components or Components()
        chosen, reasons = placement.chosen(configs, components.rows, fetch=not plan.dry_run)
        components = dataclasses.replace(components, chosen=chosen, tell=tell)
        for line in reasons:
            say(line)
        work = dry_run.lines if plan.dry_run else series.run
        try:
            with errors.translate_errors():
                for line in work(configs, plan.run_dir, plan.several, components):
                    if not plan.json:  # each of them is in an event
                        say(line)
        except errors.UserError as error:
            tell({"event": "failed", "text": str(error)})
            raise
        if plan.json:
            tell(events.summary(configs[0], *series.places(configs, plan.run_dir, plan.several)))
