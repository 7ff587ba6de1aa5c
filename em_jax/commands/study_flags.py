"""The flags of studies of existing runs, as these declare them, and the work that studies of finished runs share."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError

FINISHED = "finished runs of one base, or directories of such"
Counts = Mapping[str, tuple[int, str]]
"""Flags with a whole number, which are options of the study too: the least one, and what is counted."""


def parser(name: str, description: str, options: Any, counts: Counts, *, runs: str = FINISHED, out: str = "") -> Parser:
    """The parser of `em-jax study NAME RUN...`; `options` has the defaults of `counts`.

    `out` is the default of --out, a folder beside the runs, empty for one inside the run.
    """
    made = Parser(prog=f"em-jax study {name}", description=description)
    made.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    where = f"{out}, beside the runs" if out else f"RUN/{name}"
    made.add_argument("--out", default="", metavar="DIR", help=f"where the files go (default {where})")
    for flag, (_, words) in counts.items():
        default = getattr(options, flag)
        made.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{words} (default {default})")
    return made


def counted(flags: Any, counts: Counts) -> dict[str, int]:
    """The options that are counts. Raises UsageError for a number below its least one."""
    for name, (least, _) in counts.items():
        if getattr(flags, name) < least:
            raise UsageError(f"--{name} expects {least} or more, found {getattr(flags, name)}")
    return {name: getattr(flags, name) for name in counts}


def by_counts(name: str, module: str, arguments: Sequence[str]) -> None:
    """Do a study of finished runs all of whose flags are counts; `module` of em_jax.studies declares them."""
    study = importlib.import_module(f"em_jax.studies.{module}")
    flags = parser(name, study.DESCRIPTION, study.Options, study.COUNTS, out=name).parse_args(arguments)
    study_finished_runs(study, name, flags.runs, flags.out, study.Options(**counted(flags, study.COUNTS)))


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
