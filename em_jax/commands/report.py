"""`em-jax report RUN...`: draw the pages of finished runs again, from their files."""

from collections.abc import Sequence

from em_jax.commands.compare import directories, runs_parser


def main(arguments: Sequence[str]) -> None:
    """Draw every run's report.html and figures again and print their paths; nothing else is changed."""
    from em_jax import report
    from em_jax.runs import stored

    parser = runs_parser("em-jax report", "Draw the pages of finished runs again.")
    for directory in directories(parser.parse_args(arguments).runs):
        if stored.is_run(directory):  # what a launch checks, but for the models, which no page needs
            stored.open_run(directory, with_base=False)
        print(report.write(directory), flush=True)
