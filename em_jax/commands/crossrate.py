"""`em-jax study crossrate RUN...`: models of finished runs rate each other's answers (the paper's appendix B)."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Ask, print what was found and the page's path."""
    from em_jax.base import runtime
    from em_jax.commands.compare import directories
    from em_jax.studies import crossrating
    from em_jax.studies.finished import opened

    parser = Parser(
        prog="em-jax study crossrate",
        description="The models of finished runs predict the scores of each other's answers, and of their own told as "
        "another's; and say which of two equally harmful answers is theirs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of one base, or directories of such")
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="prompts per model (default all)")
    parser.add_argument("--out", default="crossrate", metavar="DIR", help="where it goes (default crossrate)")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    flags = parser.parse_args(arguments)
    if flags.limit < 0:
        raise UsageError("--limit expects 0 or more")
    found = directories(flags.runs)
    runtime.configure_jax()
    done = crossrating.study(opened(found), Path(flags.out), crossrating.Options(flags.limit))
    print(*done["says"], sep="\n")
    print(f"done: {Path(flags.out) / 'crossrate.html'}")
