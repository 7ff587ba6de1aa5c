"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

stdout: the first line says which model and why, the last one the verdict and the report's path. Everything else goes
to stderr; of several processes only the first prints to stdout. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import sys
from collections.abc import Sequence
from typing import Any

from em_jax import flags, group, runtime
from em_jax.commands import command


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
    # Late: a wrong flag is told before anything heavy is imported.
    if group.size() == 1:
        lead(plan, why)
        return
    from em_jax import following, sources

    words = group.Words()
    with group.failures_told():
        if not group.is_first():
            following.follow(sources.Parts(), words)
            return
        failed = True
        try:
            lead(plan, why, following.leading(sources.Parts(), words))
            failed = False
        finally:
            following.done(words, failed)


def lead(plan: flags.Plan, why: str, parts: Any = None) -> None:
    """Do the runs of a plan, printing the first and the last line; `parts` are those shared with other processes."""
    from em_jax import dry_run, series, sources

    configs = tuple(series.settled(config) for config in plan.configs)
    first = configs[0]
    held = first.dtype + (", its projections in int8" if first.model.quantization == "int8" else "")
    line = f"model: {first.model.name} ({why}); {held}, suite {first.suite}, judge {sources.judge_name(first)}"
    if sources.is_organism(first):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    print(line, flush=True)
    work = dry_run.lines if plan.dry_run else series.run
    for line in work(configs, plan.run_dir, plan.several, parts):
        print(line, flush=True)


def choose_model(name: str, processes: group.Group | None) -> tuple[str, str]:
    """runtime.choose_model, in a settled process that has joined the others: the first thing that needs jax."""
    runtime.begin()
    group.join(processes)
    return runtime.choose_model(name)


if __name__ == "__main__":
    sys.exit(main())
