"""The flags that studies of existing runs share, and the work that those of finished runs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError

FINISHED = "finished runs of one base, or directories of such"


def parser(name: str, description: str, *, runs: str = FINISHED, out: str = "", **counts: str) -> Parser:
    """The parser of `em-jax study NAME RUN...`.

    `out` is the default of --out, a folder beside the runs, empty for one inside the run. `counts` are flags with a
    whole number, each as "DEFAULT what it counts".
    """
    made = Parser(prog=f"em-jax study {name}", description=description)
    made.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    where = f"{out}, beside the runs" if out else f"RUN/{name}"
    made.add_argument("--out", default="", metavar="DIR", help=f"where the files go (default {where})")
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
    from em_jax.commands.compare import beside, directories
    from em_jax.studies.finished import load_models

    paths = directories(runs)
    runtime.configure_jax()
    folder = Path(out) if out else beside(paths, name)
    record = study.study(load_models(paths), folder, options)
    print(*record["says"], sep="\n")
    print(f"done: {folder / f'{name}.html'}")
