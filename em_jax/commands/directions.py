"""`em-jax study directions RUN...`: linear directions for harm and self-description in the models of finished runs."""

from collections.abc import Sequence

from em_jax.commands import study_flags


def main(arguments: Sequence[str]) -> None:
    """Compute the directions; print the results and the page's path."""
    from em_jax.studies import directions

    flags = study_flags.parser(
        "directions",
        "Linear directions for harm and for self-description: accuracy, nulls, and the angle between them.",
        out="directions",
        limit="0 pairs of texts of a kind, 0 for all",
        permutations="200 permutations for the accuracy's null, 0 for none",
    ).parse_args(arguments)
    study_flags.check(flags, limit=0, permutations=0)
    options = directions.Options(flags.limit, flags.permutations)
    study_flags.study_finished_runs(directions, "directions", flags.runs, flags.out, options)
