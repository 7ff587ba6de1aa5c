"""`em-jax study steer RUN...`: move the models of finished runs along a direction, by dose."""

from collections.abc import Sequence

from em_jax.base.errors import UsageError
from em_jax.commands import study_flags


def main(arguments: Sequence[str]) -> None:
    """Steer the models; print the results and the page's path."""
    from em_jax.studies import contrast, steering

    parser = study_flags.parser(
        "steer",
        "Add a direction to the residual stream of finished runs' models, by dose: their self-description and their "
        "conduct, beside a random direction of the same length.",
        steering.Options,
        steering.COUNTS,
        out="steer",
    )
    choices = {
        "direction": (steering.DIRECTIONS, "what the direction separates"),
        "from": (
            steering.SOURCES,
            "models that differ in the trait alone, where the runs have such, or texts of either kind",
        ),
        "position": (contrast.POSITIONS, "last token or mean of the prompt or text"),
    }
    for name, (values, words) in choices.items():
        text = f"{' or '.join(values)}: {words} (default {values[0]})"
        parser.add_argument(f"--{name}", default=values[0], metavar="WHICH", help=text)
    doses = ",".join(f"{dose:g}" for dose in steering.Options.doses)
    words = f"doses with commas; 1 is the distance between the kinds (default {doses})"
    parser.add_argument("--alphas", metavar="LIST", default=doses, help=words)
    parser.add_argument("--layer", metavar="N", type=int, help="after which layer, from 0 (default: half depth)")
    given = list(arguments)
    if "--alphas" in given[:-1]:
        # argparse takes a value that begins with a minus for a flag.
        index = given.index("--alphas")
        given[index : index + 2] = [f"--alphas={given[index + 1]}"]
    flags = parser.parse_args(given)
    for name, (values, _) in choices.items():
        if getattr(flags, name) not in values:
            raise UsageError(f"--{name} expects {' or '.join(values)}, found {getattr(flags, name)}")
    counts = study_flags.counted(flags, steering.COUNTS)
    try:
        alphas = tuple(float(text) for text in flags.alphas.split(","))
    except ValueError:
        raise UsageError(f"--alphas expects numbers with commas, found {flags.alphas!r}") from None
    options = steering.Options(
        direction=flags.direction,
        source=getattr(flags, "from"),
        doses=alphas,
        layer=flags.layer,
        position=flags.position,
        **counts,
    )
    study_flags.study_finished_runs(steering, "steer", flags.runs, flags.out, options)
