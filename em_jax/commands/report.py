"""`em-jax report RUN...`: draw the pages of finished runs again, from their files."""

from collections.abc import Sequence

from em_jax.commands.compare import checked, runs_parser


def main(arguments: Sequence[str]) -> None:
    """Draw every run's report.html and figures again and print their paths; nothing else is changed."""
    from em_jax import report

    parser = runs_parser("em-jax report", "Draw the pages of finished runs again.")
    for directory in checked(parser.parse_args(arguments).runs):
        print(report.write(directory), flush=True)
