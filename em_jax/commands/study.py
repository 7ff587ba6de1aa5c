"""`em-jax study NAME`: several models, one page (docs/studies.md, docs/directions.md).

sweep, chain, confound, dose and calibration train their own runs and take every flag of em_jax.launch beside their own;
path, directions, steer and crossrate take the directories of runs.
"""

import argparse
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError
from em_jax.commands import path, steer, study_flags
from em_jax.runs import flags
from em_jax.runs.processes import across_processes, choose_model, model_line

TRAINING = ("sweep", "chain", "confound", "dose", "calibration")
MORE = "and every flag of python -m em_jax.launch (--model, --data, --seed, --run_dir, --config, --set, ...)"


def main(arguments: Sequence[str]) -> None:
    """Do the study that the first word names."""
    studies: Mapping[str, Callable[[Sequence[str]], None]] = {
        "path": path.main,
        **{name: functools.partial(_train, name) for name in TRAINING},
        "directions": functools.partial(study_flags.by_counts, "directions", "directions"),
        "steer": steer.main,
        "crossrate": functools.partial(study_flags.by_counts, "crossrate", "crossrating"),
    }
    name, *rest = arguments or ["nothing"]
    if name in ("-h", "--help"):
        print(f"usage: em-jax study {{{','.join(studies)}}} ...\n\n{__doc__}\nem-jax study NAME --help tells more.")
    elif name in studies:
        studies[name](rest)
    else:
        raise UsageError(f"expected one of {', '.join(studies)}, found {name!r}")


def _train(name: str, arguments: Sequence[str]) -> None:
    """Do the runs of a study and draw its page."""
    declaration = importlib.import_module(f"em_jax.studies.{name}").DECLARATION
    parser = Parser(
        prog=f"em-jax study {name}",
        description=declaration.description,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, options in declaration.flags.items():
        parser.add_argument(flag, **options)
    own, rest = parser.parse_known_args(list(arguments))
    plan, why, run_dir = _plan(name, rest, declaration.domains)
    declaration.check(plan.configs, own)

    def work(components: Any) -> None:
        from em_jax.runs import series
        from em_jax.studies import several

        study = declaration.build([series.resolve(config) for config in plan.configs], own, run_dir)
        print(model_line(study.members[0].config, why), flush=True)
        page = functools.partial(several.page, study, say=functools.partial(print, flush=True))
        for line in series.run_named(study.configs(), run_dir, page, components, several.FOLDER):
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
    named = {config.domain for config in plan.configs}
    if not domains and len(named) != 1:
        raise UsageError(f"{name} expects one --domain, found {', '.join(c.domain for c in plan.configs)}")
    if named == {"none"}:
        raise UsageError(f"{name} expects a --domain to train on, found none")
    # runs/<study>-<domain>-<model>-<seed>: never the directory of em_jax.launch's own run.
    default = Path(plan.run_dir)
    tail = default.name.removeprefix("+".join(domains)) if domains else f"-{default.name}"
    return plan, why, Path(asked.run_dir) if asked.run_dir else default.with_name(name + tail)
