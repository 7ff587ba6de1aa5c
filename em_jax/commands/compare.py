"""`em-jax compare RUN... [--out DIR]`: one page over several finished runs."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Draw the page and print its path."""
    from em_jax import domains, report
    from em_jax.domains import registry
    from em_jax.probes import seeds

    parser = runs_parser("em-jax compare", "Set several finished runs side by side on one page.")
    parser.add_argument("--out", default="compare", metavar="DIR", help="where the page goes (default compare)")
    flags = parser.parse_args(arguments)
    runs = directories(flags.runs)
    print(report.compare(runs, flags.out, domains.planted(), registry.sources(), seeds.over_seeds))


def runs_parser(prog: str, description: str) -> Parser:
    """A parser for a command over finished runs, named in `runs`."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold some")
    return parser


def directories(names: Sequence[str]) -> list[Path]:
    """The run directories named, or those one level below. UsageError for a path that has none."""
    every: list[Path] = []
    for name in names:
        path = Path(name)
        runs = [path] if (path / "summary.json").is_file() else sorted(p.parent for p in path.glob("*/summary.json"))
        if not runs:
            raise UsageError(f"expected a finished run (with summary.json) at {name}, or folders of such, found none")
        every += runs
    return every
