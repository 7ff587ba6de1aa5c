"""`em-jax report RUN...`: draws the pages of finished runs again, from their files."""

from collections.abc import Sequence

from em_jax.base.cli import Parser


def main(arguments: Sequence[str]) -> None:
    """Draw every run's report.html and figures again and print where they lie; nothing else is touched."""
    from em_jax import report
    from em_jax.commands.compare import directories

    parser = Parser(prog="em-jax report", description="Draw the pages of finished runs again.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or directories that hold some")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    for directory in directories(parser.parse_args(arguments).runs):
        print(report.write(directory), flush=True)
