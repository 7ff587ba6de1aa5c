"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

stdout: the first line says which model and why, the last one the verdict and the report's path. Everything else goes
to stderr. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import sys
from collections.abc import Sequence

from em_jax import flags, runtime
from em_jax.commands import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return command("em_jax.launch", launch, arguments, resumes=True)


def launch(arguments: Sequence[str]) -> None:
    """Settle model and settings, run what was asked for, print the first and the last line."""
    plan, why = flags.plan(arguments, choose_model)
    # Late: a wrong flag is told before anything heavy is imported.
    from em_jax import series, sources

    configs = tuple(series.settled(config) for config in plan.configs)
    first = configs[0]
    line = f"model: {first.model.name} ({why}); {first.dtype}, suite {first.suite}, judge {sources.judge_name(first)}"
    if sources.is_organism(first):
        line += "; the organism is a calibration fixture and says nothing about Qwen"
    print(line, flush=True)
    for line in series.run(configs, plan.run_dir, plan.several):
        print(line, flush=True)


def choose_model(name: str) -> tuple[str, str]:
    """runtime.choose_model, in a settled process: the first thing that needs jax."""
    runtime.begin()
    return runtime.choose_model(name)


if __name__ == "__main__":
    sys.exit(main())
