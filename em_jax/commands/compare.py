"""`em-jax compare RUN... [--out DIR]`: one page over several finished runs."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Draw the page and print its path."""
    from em_jax import domains, report
    from em_jax.domains import registry

    parser = Parser(prog="em-jax compare", description="Set several finished runs side by side on one page.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold some")
    parser.add_argument("--out", default="compare", metavar="DIR", help="where the page goes (default compare)")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    flags = parser.parse_args(arguments)
    print(report.compare(directories(flags.runs), flags.out, domains.planted(), registry.sources()))


def directories(named: Sequence[str]) -> list[Path]:
    """The run directories named, or found one level below. UsageError for a path that holds none."""
    found: list[Path] = []
    for text in named:
        path = Path(text)
        runs = [path] if (path / "summary.json").is_file() else sorted(p.parent for p in path.glob("*/summary.json"))
        if not runs:
            raise UsageError(f"expected a finished run (with summary.json) at {text}, or folders of such, found none")
        found += runs
    return found
