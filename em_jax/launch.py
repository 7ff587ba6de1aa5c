"""The main command: `python -m em_jax.launch --domain bad_medical` (`--help` lists the flags).

The first line on stdout names the model and why, the last one the verdict and the report's path. Progress goes to
stderr; of several processes only process 0 prints to stdout.
With --json stdout has events instead, one a line. Exit status: 0 done, 1 the run failed, 2 wrong usage.
"""

import sys
from collections.abc import Sequence

from em_jax.base import multihost
from em_jax.base.cli import command
from em_jax.runs import flags
from em_jax.runs.processes import across_processes, choose_model, run_plan


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


if __name__ == "__main__":
    sys.exit(main())
