"""`em-jax study NAME`: several models, one page (docs/studies.md, docs/directions.md).

sweep, chain, confound, dose and calibration train their own runs and take every flag of em_jax.launch beside their own;
path, directions, steer and crossrate take the directories of runs.
"""

import argparse
import dataclasses
import functools
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.commands.compare import beside
from em_jax.config import parse_set
from em_jax.runs import flags
from em_jax.runs.processes import across_processes, choose_model, model_line

TRAINING = ("sweep", "chain", "confound", "dose", "calibration")
MODULES = {name: name for name in ("path", *TRAINING, "directions")} | {"steer": "steering", "crossrate": "crossrating"}
"""Every study and its module of em_jax.studies, which declares the command's text and flags."""
MORE = "and every flag of python -m em_jax.launch (--model, --data, --seed, --run_dir, --config, --set, ...)"


def main(arguments: Sequence[str]) -> None:
    """Do the study that the first word names."""
    name, *rest = arguments or ["nothing"]
    if name in ("-h", "--help"):
        print(f"usage: em-jax study {{{','.join(MODULES)}}} ...\n\n{__doc__}\nem-jax study NAME --help tells more.")
        return
    if name not in MODULES:
        raise UsageError(f"expected one of {', '.join(MODULES)}, found {name!r}")
    study = importlib.import_module(f"em_jax.studies.{MODULES[name]}")
    work = _train if name in TRAINING else _follow if name == "path" else _examine
    work(name, study, rest)


def _parser(name: str, description: str, own: Mapping[str, Mapping[str, Any]], **more: Any) -> Parser:
    """The parser of `em-jax study NAME`; `own` has argparse's options by flag."""
    parser = Parser(prog=f"em-jax study {name}", description=description, **more)
    for flag, options in own.items():
        parser.add_argument(flag, **options)
    return parser


def _of_runs(name: str, study: Any, arguments: Sequence[str], runs: str, default: str) -> tuple[Any, Any]:
    """(The flags, the study's Options) of a study of existing `runs`; `default` says where --out is by default."""
    common = {
        "runs": {"nargs": "+", "metavar": "RUN", "help": runs},
        "--out": {"default": "", "metavar": "DIR", "help": f"where the files go (default {default})"},
    }
    given = _parser(name, study.DESCRIPTION, common | study.FLAGS).parse_args(arguments)
    options = {field.name for field in dataclasses.fields(study.Options)} & vars(given).keys()
    return given, study.Options(**{option: getattr(given, option) for option in options})


def _examine(name: str, study: Any, arguments: Sequence[str]) -> None:
    """Do a study of finished runs; print its sentences and the path of its page."""
    runs = "finished runs of one base, or directories of such"
    given, options = _of_runs(name, study, arguments, runs, f"{name}, beside the runs")
    from em_jax.base import runtime
    from em_jax.runs import stored
    from em_jax.studies.finished import load_models

    paths = stored.find(given.runs, several=True, finished=True)
    runtime.configure_jax()
    folder = Path(given.out) if given.out else beside(paths, name)
    record = study.study(load_models(paths), folder, options)
    print(*record["says"], sep="\n")
    print(f"done: {folder / f'{name}.html'}")


def _follow(name: str, study: Any, arguments: Sequence[str]) -> None:
    """Ask the adapters that every run kept over training; print the results and the pages' paths."""
    from em_jax.runs import stored

    kept = "runs trained with --set train.keep_adapters=K"
    given, options = _of_runs(name, study, arguments, kept, f"RUN/{name}")
    if given.out and len(given.runs) > 1:
        raise UsageError("--out goes with one RUN: each has its own page")
    changes = dict(parse_set(text) for text in given.set) | ({"mesh": given.mesh} if given.mesh else {})
    runs = stored.find(given.runs)
    for run in runs:
        # Errors are reported before a model is loaded.
        study.kept_adapters(run, options.steps)
        study.run_config(run, changes)
    choose_model("organism", None)

    def work(components: Any) -> None:
        from em_jax.runs.components import Components

        for run in runs:
            out = Path(given.out) if given.out else run / name
            record = study.study(run, out, options, changes, components or Components())
            print(*record["why"], f"done: {out / f'{name}.html'}", sep="\n", flush=True)

    across_processes(work)


def _train(name: str, study: Any, arguments: Sequence[str]) -> None:
    """Do the runs of a study and draw its page."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _parser(name, study.DESCRIPTION, study.FLAGS, epilog=MORE, formatter_class=formatter)
    own, rest = parser.parse_known_args(list(arguments))
    plan, why, run_dir = _plan(name, rest, getattr(study, "DOMAINS", ()))
    if hasattr(study, "check"):
        study.check(plan.configs, own)

    def work(components: Any) -> None:
        from em_jax.runs import dry_run, series
        from em_jax.studies import several

        configs, rows = [series.resolve(config) for config in plan.configs], run_dir / "rows"
        with tempfile.TemporaryDirectory() as scratch:  # for a dry run, which writes nothing elsewhere
            built = study.build(configs, own, run_dir, Path(scratch) if plan.dry_run and not rows.is_dir() else rows)
            print(model_line(built.members[0].config, why), flush=True)
            if plan.dry_run:
                named = built.configs()
                lines = dry_run.lines([*named.values()], run_dir, True, components, names=[*named], page=several.FOLDER)
                print(*lines, sep="\n")
                return
        page = functools.partial(several.page, built, say=functools.partial(print, flush=True))
        for line in series.run_named(built.configs(), run_dir, page, components, several.FOLDER):
            print(line, flush=True)

    across_processes(work)


def _plan(name: str, arguments: Sequence[str], domains: Sequence[str]) -> tuple[Any, str, Path]:
    """The runs that the flags of em_jax.launch describe, why their model, and the study's directory.

    `domains` are the study's own; without them the flags name one.
    """
    asked = flags.parser().parse_args(arguments)
    if asked.adapter:
        raise UsageError(f"{name} trains its own adapters: expected no --adapter")
    if domains and asked.domain:
        raise UsageError(f"{name} has its own domains ({', '.join(domains)}): expected no --domain")
    plan, why = flags.plan([*arguments, *(["--domain", ",".join(domains)] if domains else [])], choose_model)
    if plan.json or plan.log:
        raise UsageError(f"{name} prints sentences and draws a page: expected no --json and no --log")
    named = {config.domain for config in plan.configs}
    if not domains and len(named) != 1:
        raise UsageError(f"{name} expects one --domain, found {', '.join(c.domain for c in plan.configs)}")
    if named == {"none"}:
        raise UsageError(f"{name} expects a --domain to train on, found none")
    # runs/<study>-<domain>-<model>-<seed>: never the directory of em_jax.launch's own run.
    default = Path(plan.run_dir)
    tail = default.name.removeprefix("+".join(domains)) if domains else f"-{default.name}"
    return plan, why, Path(asked.run_dir) if asked.run_dir else default.with_name(name + tail)
