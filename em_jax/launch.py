"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

stdout: the first line says which model and why, the last one the verdict and the report's path. Everything else goes
to stderr; of several processes only the first prints to stdout. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import sys
from collections.abc import Sequence

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
    # Late: a wrong flag is told before anything heavy is imported.
    from em_jax import series, sources

    words = group.Words()
    if group.size() > 1:
        from em_jax import following

        if not group.is_first():
            following.follow(sources.Parts(), words)
            return
    configs = tuple(series.settled(config) for config in plan.configs)
    first = configs[0]
    line = f"model: {first.model.name} ({why}); {first.dtype}, suite {first.suite}, judge {sources.judge_name(first)}"
    if sources.is_organism(first):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    print(line, flush=True)
    parts = following.leading(sources.Parts(), words) if group.size() > 1 else None
    for line in series.run(configs, plan.run_dir, plan.several, parts):
        print(line, flush=True)
    if parts:
        following.done(words)


def choose_model(name: str, processes: group.Group | None) -> tuple[str, str]:
    """runtime.choose_model, in a settled process that has joined the others: the first thing that needs jax."""
    runtime.begin()
    group.join(processes)
    return runtime.choose_model(name)


if __name__ == "__main__":
    sys.exit(main())
