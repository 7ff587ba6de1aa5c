"""The flags that studies of existing runs share, and the work that those of finished runs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError

FINISHED = "finished runs of one base, or directories of such"


def parser(name: str, description: str, *, runs: str = FINISHED, out: str = "", **counts: str) -> Parser:
    """The parser of `em-jax study NAME RUN...`.

    `out` is the default of --out, empty for one inside the run. `counts` are flags with a whole number, each as
    "DEFAULT what it counts".
    """
    made = Parser(prog=f"em-jax study {name}", description=description)
    made.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    made.add_argument("--out", default=out, metavar="DIR", help=f"where the files go (default {out or f'RUN/{name}'})")
    for flag, text in counts.items():
        default, _, words = text.partition(" ")
        made.add_argument(f"--{flag}", type=int, default=int(default), metavar="N", help=f"{words} (default {default})")
    return made


def check(flags: Any, **least: int) -> None:
    """Raises UsageError for a number below its least one."""
    for name, number in least.items():
        if getattr(flags, name) < number:
            raise UsageError(f"--{name} expects {number} or more, found {getattr(flags, name)}")


def study_finished_runs(study: Any, name: str, runs: Sequence[str], out: str, options: Any) -> None:
    """Do a study of finished runs; print its sentences and the path of its page."""
    from em_jax.base import runtime
    from em_jax.commands.compare import directories
    from em_jax.studies.finished import load_models

    paths = directories(runs)
    runtime.configure_jax()
    record = study.study(load_models(paths), Path(out), options)
    print(*record["says"], sep="\n")
    print(f"done: {Path(out) / f'{name}.html'}")
