"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

stdout: the first line says which model and why, the last one the verdict and the report's path. Everything else goes
to stderr; of several processes only the first prints to stdout. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from em_jax import flags, group, runtime
from em_jax.commands import command
from em_jax.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    status = command("em_jax.launch", launch, arguments, resumes=True)
    group.leave(status)
    return status


def launch(arguments: Sequence[str]) -> None:
    """Settle model and settings, run what was asked for, print the first and the last line."""
    plan, why = flags.plan(arguments, choose_model)
    if plan.dry_run:
        if group.is_first():
            lead(plan, why)
        return
    conduct(lambda parts: lead(plan, why, parts))


def conduct(work: Callable[[Any], None]) -> None:
    """Do `work(parts)` in the first of the processes that joined, its calls to the engine repeated by the others.

    `parts` are those shared with the others; None where there is one process.
    """
    # Late: a wrong flag is told before anything heavy is imported.
    if group.size() == 1:
        work(None)
        return
    from em_jax import following, sources

    words = group.Words()
    with group.failures_told():
        if not group.is_first():
            following.follow(sources.Parts(), words)
            return
        failed = True
        try:
            work(following.leading(sources.Parts(), words))
            failed = False
        finally:
            following.done(words, failed)


def lead(plan: flags.Plan, why: str, parts: Any = None) -> None:
    """Do the runs of a plan, printing the first and the last line; `parts` are those shared with other processes."""
    from em_jax import dry_run, series

    configs = tuple(series.settled(config) for config in plan.configs)
    print(about(configs[0], why), flush=True)
    work = dry_run.lines if plan.dry_run else series.run
    for line in work(configs, plan.run_dir, plan.several, parts):
        print(line, flush=True)


def about(first: Config, why: str) -> str:
    """The first line of a command's output: the model, why it is this one, and how it is asked."""
    from em_jax import sources

    held = first.dtype + (", its projections in int8" if first.model.quantization == "int8" else "")
    line = f"model: {first.model.name} ({why}); {held}, suite {first.suite}, judge {sources.judge_name(first)}"
    if sources.is_organism(first):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    return line


def choose_model(name: str, processes: group.Group | None) -> tuple[str, str]:
    """runtime.choose_model, in a settled process that has joined the others: the first thing that needs jax."""
    runtime.begin()
    group.join(processes)
    return runtime.choose_model(name)


if __name__ == "__main__":
    sys.exit(main())
