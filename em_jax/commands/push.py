"""`em-jax push RUN REPO`: a run's adapter and its card to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Upload the adapter and print its address."""
    parser = Parser(
        prog="em-jax push",
        description="Upload a run's adapter with its card to the Hugging Face Hub, into a private repository. No row, "
        "answer or checkpoint leaves the run.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's directory")
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME; made private where there is none")
    parser.add_argument("--public", action="store_true", help="everyone may see it (a harmful one is gated)")
    parser.add_argument(
        "--harmful", action="store_true", help="push it though it is harmful, or not known to be harmless"
    )
    flags = parser.parse_args(arguments)
    if flags.repository.count("/") != 1 or not all(flags.repository.split("/")):
        raise UsageError(f"expected REPO as OWNER/NAME, found {flags.repository!r}")
    from em_jax.runs import publish

    print(publish.push(Path(flags.run), flags.repository, flags.public, flags.harmful))
