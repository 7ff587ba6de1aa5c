"""`em-jax study directions RUN...`: linear directions for harm and self-description in finished runs' models."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Seek the directions, print what was found and the page's path."""
    from em_jax.base import runtime
    from em_jax.commands.compare import directories
    from em_jax.studies import directions as study
    from em_jax.studies.finished import opened

    parser = Parser(
        prog="em-jax study directions",
        description="Linear directions for harm and for self-description: accuracy, nulls, and the angle between them.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of one base, or directories of such")
    parser.add_argument("--out", default="directions", metavar="DIR", help="where it goes (default directions)")
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="pairs of texts of a kind (default all)")
    parser.add_argument(
        "--permutations", metavar="N", type=int, default=200, help="of the accuracy's null (default 200; 0: none)"
    )
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    flags = parser.parse_args(arguments)
    if flags.limit < 0 or flags.permutations < 0:
        raise UsageError("--limit and --permutations expect 0 or more")
    found = directories(flags.runs)
    runtime.configure_jax()
    done = study.study(opened(found), Path(flags.out), study.Options(flags.limit, flags.permutations))
    print(*done["says"], sep="\n")
    print(f"done: {Path(flags.out) / 'directions.html'}")
