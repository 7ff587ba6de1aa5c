"""The sentences and tables of the study of cross-rating, from the content of crossrate.json."""

from collections.abc import Mapping
from typing import Any

from em_jax.probes.thresholds import THRESHOLDS
from em_jax.report.reading import figure_of
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.vocabulary import KAPPA
from em_jax.studies.page import Section, cell, leaves, null_range
from em_jax.studies.sentences import percent

KIND, TITLE = "cross-rating", "Does it know harm, and its own?"
OWN, OTHER = "own", "other"
"""Whose answer the rater is told it is."""


def subject(record: Mapping[str, Any]) -> str:
    """The models."""
    return ", ".join(record["ratings"])


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The results, and what cannot be concluded."""
    lines, few = [], []
    for rater, author, sides in leaves(record["ratings"], 2):
        whose = f"{rater} rating {'its own answers' if rater == author else f'the answers of {author}'}"
        kappa, null = sides[OWN]["shown_kappa"], sides[OWN]["shown_null_kappa"]
        errors = [sides[attributed]["shown_error_high"] for attributed in (OWN, OTHER)]
        if kappa["n"] < THRESHOLDS.least_questions:
            few.append(f"{rater} of {author}")
        elif null and null["value"] is not None:
            lines.append(
                f"{whose} as its own: kappa {kappa['value']:.2f} (n {kappa['n']}), "
                f"{'beyond' if kappa['value'] > null['ci_high'] else 'within'} its shuffled null "
                f"({null['ci_low']:.2f} to {null['ci_high']:.2f})."
            )
        unscored = max(sides[attributed]["unscored"]["value"] or 0 for attributed in (OWN, OTHER))
        if unscored > THRESHOLDS.most_unscored:
            lines.append(f"{whose}: cannot compare, {unscored:.0%} are unscored under one of the wordings.")
        elif all(error["n"] >= THRESHOLDS.least_questions for error in errors):
            lines.append(
                f"{whose}, the harmful ones: the predicted score is off by {errors[0]['value']:+.2f} as its own and by "
                f"{errors[1]['value']:+.2f} as another AI's (n {errors[0]['n']})."
            )
    for rater, author, it in leaves(record["alike"], 2):
        claims, null = it["claims"], it["null"]
        if claims["n"] < THRESHOLDS.least_questions:
            lines.append(
                f"Cannot conclude whether {rater} knows its answers from those of {author} with the same score: "
                f"{claims['n']} prompts have such a pair, under {THRESHOLDS.least_questions}."
            )
        else:
            side = "inside" if null["low"] <= claims["value"] <= null["high"] else "outside"
            lines.append(
                f"{rater} claims its own answer beside one of {author} with the same score in {percent(claims)}, "
                f"{side} the null ({null['low']:.0%} to {null['high']:.0%})."
            )
    if few:
        lines.append(
            f"No kappa for {', '.join(few)}, and so no agreement with the judge: all scores are alike, or under "
            f"{THRESHOLDS.least_questions} prompts."
        )
    return [*lines, "Errors regress to the mean even in a model that guesses: read them beside kappa and its null."]


def sections(record: Mapping[str, Any]) -> list[Section]:
    """The tables of ratings and of picks between equally harmful answers."""
    signed = ("shown_error_low", "shown_error_high", "shown_correlation", "shown_kappa", "shown_null_kappa")
    words = {OWN: "as its own", OTHER: "as another AI's"}
    rated = [
        [f"{rater} of {author}, {words[attributed]}", *(cell(it[name], KAPPA) for name in signed), cell(it["unscored"])]
        for rater, author, attributed, it in leaves(record["ratings"], 3)
        if attributed in words
    ]
    pairs = [
        [f"{rater} beside {author}", cell(it["claims"]), null_range(it["null"])]
        + [cell(it["picks_first"]), cell(it["unscored"])]
        for rater, author, it in leaves(record["alike"], 2)
    ]
    return [
        Section(
            "Rating each other",
            [
                "Mark and line: agreement of a model's predictions with the judge's scores (kappa, 95% interval), the "
                "answers told to be its own. Pale bar: the same where predictions are assigned to the wrong answers.",
                "Predicted minus the judge's score for answers scored 1-2 (low) and 4-5 (high), agreement, and kappa "
                "when predictions are assigned to the wrong answers.",
            ],
            ("rater of author", "error, low", "error, high", "correlation", "kappa", "null of kappa", "unscored"),
            rated,
            [_agreement(record)],
        ),
        Section(
            "Its own beside an equally harmful one",
            [
                "Two answers with the same score to the same prompt, in both orders: which did you write? The null "
                "exchanges own and other within questions."
            ],
            ("model beside author", "claims its own", "null", "picks the first", "unscored"),
            pairs,
        ),
    ]


def _agreement(record: Mapping[str, Any]) -> Drawing:
    """Every rater of every author, one below another: kappa with its interval, over the range of its null."""
    rows = [(f"{rater} of {author}", sides[OWN]) for rater, author, sides in leaves(record["ratings"], 2)]
    measured = [(name, figure_of(it["shown_kappa"]), figure_of(it["shown_null_kappa"])) for name, it in rows]

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        for at, (_, kappa, null) in enumerate(measured):
            if null.interval:
                axes.plot(null.interval, (at, at), color=LIGHT["rule"], lw=9, solid_capstyle="butt")
            if kappa.interval:
                axes.plot(kappa.interval, (at, at), color=LIGHT["ink"], lw=1.2)
            if kappa.value is not None:
                axes.plot(kappa.value, at, "o", ms=6, color=LIGHT["ink"])
        axes.axvline(0, color=LIGHT["soft"], lw=0.8)
        axes.set_yticks(range(len(measured)), [name for name, *_ in measured])
        axes.set(xlim=(-1.05, 1.05), ylim=(len(measured) - 0.4, -0.6), xlabel="kappa with the judge")

    described = "; ".join(f"{name}: {KAPPA.text(kappa.value)}" for name, kappa, _ in measured)
    return draw("agreement", "Agreement with the judge", f"{described}.", (4.6, 0.5 + 0.32 * len(measured)), paint)
