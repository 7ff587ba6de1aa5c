"""`em-jax study crossrate RUN...`: models of finished runs rate each other's answers (the paper's appendix B)."""

from collections.abc import Sequence

from em_jax.commands import study_flags


def main(arguments: Sequence[str]) -> None:
    """Ask the models; print the results and the page's path."""
    from em_jax.studies import crossrating

    flags = study_flags.parser(
        "crossrate",
        "The models of finished runs predict the scores of each other's answers, and of their own as another AI's; and "
        "pick their own of two equally harmful answers.",
        out="crossrate",
        limit="0 prompts per model, 0 for all",
    ).parse_args(arguments)
    study_flags.check(flags, limit=0)
    options = crossrating.Options(flags.limit)
    study_flags.study_finished_runs(crossrating, "crossrate", flags.runs, flags.out, options)
