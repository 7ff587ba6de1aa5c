"""`python -m em_jax.directions RUN...`: linear directions for harm and self-description in finished runs' models."""

import sys
from collections.abc import Sequence
from pathlib import Path

from em_jax.commands import Parser, command
from em_jax.errors import UsageError


def directions(arguments: Sequence[str]) -> None:
    """Seek the directions, print what was found and the page's path."""
    from em_jax import runtime
    from em_jax.compare import directories
    from em_jax.studies import directions as study
    from em_jax.studies.finished import opened

    parser = Parser(
        prog="python -m em_jax.directions",
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
    runtime.begin()
    done = study.study(opened(found), Path(flags.out), study.Options(flags.limit, flags.permutations))
    print(*done["says"], sep="\n")
    print(f"done: {Path(flags.out) / 'directions.html'}")


if __name__ == "__main__":
    sys.exit(command("em_jax.directions", directions, sys.argv[1:]))
