"""`em-jax compare RUN... [--out DIR]`: one page over several finished runs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from em_jax.base.cli import Parser


def main(arguments: Sequence[str]) -> None:
    """Draw the page and print its path."""
    from em_jax.runs import series

    parser = runs_parser("em-jax compare", "Set several finished runs side by side on one page.")
    parser.add_argument("--out", metavar="DIR", help="where the page goes (default compare, beside the runs)")
    flags = parser.parse_args(arguments)
    runs = list(checked(flags.runs))
    print(series.compare(runs, Path(flags.out) if flags.out else beside(runs, "compare")))


def runs_parser(prog: str, description: str) -> Parser:
    """A parser for a command over finished runs, named in `runs`."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold some")
    return parser


def beside(runs: Sequence[Path], name: str) -> Path:
    """The directory `name` in the folder that the runs have in common.

    Where that folder holds others too, the name has the runs' names: the page of all of them is not overwritten.
    """
    parents = [str(run.parent) for run in runs]
    if len({os.path.isabs(parent) for parent in parents}) > 1:
        parents = [os.path.abspath(parent) for parent in parents]
    folder = Path(os.path.commonpath(parents))
    others = {path.parent.resolve() for path in folder.glob("*/summary.json")} - {run.resolve() for run in runs}
    return folder / (f"{name}-{'+'.join(run.name for run in runs)}"[:120] if others else name)


def checked(names: Sequence[str]) -> Iterator[Path]:
    """The finished runs named, each after what a launch checks, but for the models, which no page needs."""
    from em_jax.runs import stored

    for directory in stored.find(names, several=True, finished=True):
        if stored.is_run(directory):
            stored.open_run(directory, with_base=False)
        yield directory
