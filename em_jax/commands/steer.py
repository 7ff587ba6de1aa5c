"""`em-jax study steer RUN...`: move finished runs' models along a direction, and draw what they do by dose."""

from collections.abc import Sequence
from pathlib import Path

from em_jax.base.cli import Parser
from em_jax.base.errors import UsageError

DOSES = "-1.5,-1,-0.5,0,0.5,1,1.5"


def main(arguments: Sequence[str]) -> None:
    """Steer, print what was found and the page's path."""
    from em_jax.base import runtime
    from em_jax.commands.compare import directories
    from em_jax.studies import contrast, steering
    from em_jax.studies.finished import opened

    parser = Parser(
        prog="em-jax study steer",
        description="Add a direction to the residual stream of finished runs' models, by dose: what they say about "
        "themselves and what they do, beside a random direction of the same length.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs of one base, or directories of such")
    parser.add_argument("--direction", metavar="WHICH", default="self", help="self or harm (default self)")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="WHERE",
        default="between",
        help="between: models that differ in it alone, where the runs have such; text: texts of either kind, as the "
        "base reads them (default between)",
    )
    parser.add_argument(
        "--alphas", metavar="LIST", default=DOSES, help=f"doses; 1 is the distance between the kinds (default {DOSES})"
    )
    parser.add_argument(
        "--position", metavar="WHERE", default="last", help="last token or mean of the prompt or text (default last)"
    )
    parser.add_argument(
        "--folds", metavar="N", type=int, default=2, help="of the questions; each is steered by the others' (default 2)"
    )
    parser.add_argument("--layer", metavar="N", type=int, help="after which layer, from 0 (default: half depth)")
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="questions per probe (default as the run's)")
    parser.add_argument("--samples", metavar="N", type=int, default=1, help="answers to a harm prompt (default 1)")
    parser.add_argument("--out", default="steer", metavar="DIR", help="where it goes (default steer)")
    parser.add_argument("--verbosity", metavar="N", type=int, help="1 shows tracebacks")
    flags = parser.parse_args(_joined(arguments))
    if flags.direction not in steering.DIRECTIONS or flags.source not in steering.SOURCES:
        raise UsageError(
            f"--direction expects {' or '.join(steering.DIRECTIONS)}, --from {' or '.join(steering.SOURCES)}, "
            f"found {flags.direction} and {flags.source}"
        )
    if flags.position not in contrast.POSITIONS:
        raise UsageError(f"--position expects {' or '.join(contrast.POSITIONS)}, found {flags.position}")
    if flags.limit < 0 or flags.samples < 1 or flags.folds < 2:
        raise UsageError("--limit expects 0 or more, --samples 1 or more, --folds 2 or more")
    try:
        doses = tuple(float(text) for text in flags.alphas.split(","))
    except ValueError:
        raise UsageError(f"--alphas expects numbers with commas, found {flags.alphas!r}") from None
    options = steering.Options(
        flags.direction,
        flags.source,
        doses,
        flags.layer,
        limit=flags.limit,
        samples=flags.samples,
        folds=flags.folds,
        position=flags.position,
    )
    found = directories(flags.runs)
    runtime.configure_jax()
    done = steering.study(opened(found), Path(flags.out), options)
    print(*done["says"], sep="\n")
    print(f"done: {Path(flags.out) / 'steer.html'}")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--alphas -1,1` as `--alphas=-1,1`: argparse takes a value that begins with a minus for a flag."""
    words = list(arguments)
    for place, word in enumerate(words[:-1]):
        if word == "--alphas":
            words[place : place + 2] = [f"--alphas={words[place + 1]}"]
            break
    return words
