"""`em-jax export RUN...`: a run's rows as CSV and Parquet, and its answers as logs of Inspect."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import some_of
from em_jax.base.errors import UsageError
from em_jax.commands.compare import runs_parser


def main(arguments: Sequence[str]) -> None:
    """Write the files and print their paths."""
    from em_jax.runs import export, stored

    parser = runs_parser(
        "em-jax export",
        "Write every row of a run (answers, scores, probes, training) as CSV and Parquet, and its answers with their "
        "scores as logs that Inspect's viewer opens. The run itself is not changed.",
    )
    parser.add_argument("--out", metavar="DIR", help="where the files go (default RUN/export)")
    parser.add_argument(
        "--formats",
        metavar="LIST",
        type=some_of(*export.FORMATS),
        default=export.FORMATS,
        help="some of csv, parquet, inspect (default all)",
    )
    flags = parser.parse_args(arguments)
    runs = stored.find(flags.runs, several=True)
    if flags.out and len(runs) > 1:
        raise UsageError(f"--out goes with one RUN, found {len(runs)}: each has its own files")
    for run in runs:
        for path in export.export(run, Path(flags.out) if flags.out else run / "export", tuple(flags.formats)):
            print(path, flush=True)
