"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

The first line on stdout names the model and why, the last one the verdict and the report's path. Progress goes to
stderr; of several processes only process 0 prints to stdout.
With --json stdout has events instead, one a line. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from em_jax.base import multihost
from em_jax.base.cli import command
from em_jax.runs import flags
from em_jax.runs.processes import across_processes, choose_model, model_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    status = command("em_jax.launch", launch, arguments, resumes=True)
    multihost.leave(status)
    return status


def launch(arguments: Sequence[str]) -> None:
    """Do the runs that the flags ask for, over all processes, and print the first and the last line."""
    plan, why = flags.plan(arguments, choose_model)
    if plan.dry_run:
        if multihost.is_first():
            run_plan(plan, why)
        return
    across_processes(lambda components: run_plan(plan, why, components))


def run_plan(plan: flags.Plan, why: str, components: Any = None) -> None:
    """Do the runs of a plan in process 0; `components` repeat its calls in the other processes."""
    from em_jax.runs import dry_run, events, placement, series, tracking
    from em_jax.runs.components import Components

    configs = tuple(series.resolve(config) for config in plan.configs)
    with tracking.trackers(() if plan.dry_run else plan.log) as listeners:
        tell = events.to_all([*([events.JsonLines()] if plan.json else []), *listeners])

        def say(line: str) -> None:
            if plan.json:
                tell({"event": "note", "text": line})
            else:
                print(line, flush=True)

        say(model_line(configs[0], why))
        components = components or Components()
        chosen, reasons = placement.chosen(configs, components.rows)
        components = dataclasses.replace(components, chosen=chosen, tell=tell)
        for line in reasons:
            say(line)
        work = dry_run.lines if plan.dry_run else series.run
        for line in work(configs, plan.run_dir, plan.several, components):
            if not plan.json:  # each of them is in an event
                say(line)
        if plan.json:
            tell(events.summary(configs[0], *series.places(configs, plan.run_dir, plan.several)))


if __name__ == "__main__":
    sys.exit(main())
