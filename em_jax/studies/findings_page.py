"""The pages of the studies of directions, steering and cross-rating: sentences, curves and one table per question."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.page import render
from em_jax.report.reading import figure_of
from em_jax.report.svg import Drawing
from em_jax.report.text import number
from em_jax.report.vocabulary import CHOICE


@dataclasses.dataclass(frozen=True)
class Part:
    """A section: its heading, a line that explains it, drawings, and a table."""

    title: str
    lead: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    drawings: Sequence[Drawing] = ()


def figure_text(figure: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A value with its interval and n, or "no data"."""
    if not figure or figure["value"] is None:
        return "no data"
    interval = ""
    if figure["ci_low"] is not None and figure["ci_high"] is not None:
        interval = f" ({number(figure['ci_low'], 2, signed)} to {number(figure['ci_high'], 2, signed)})"
    return f"{number(figure['value'], 2, signed)}{interval}, n {figure['n']}"


def null_text(null: Mapping[str, Any] | None) -> str:
    """A null's mean and 95% range."""
    return "not asked" if null is None else f"{number(null['value'])} ({number(null['low'])} to {number(null['high'])})"


def write(
    path: Path, *, kind: str, title: str, subject: str, says: Sequence[str], parts: Sequence[Part], organism: bool
) -> Path:
    """Draw a page."""
    shown = {"kind": kind, "title": title, "lead": subject, "about": "", "says": says, "parts": parts, "drawing": None}
    return write_atomic(path, render("findings.html", **shown, organism=organism, judges_itself=False))


def write_directions(path: Path, found: Mapping[str, Any], organism: bool) -> Path:
    """directions.html from what directions.json holds."""
    from em_jax.studies.contrast import HARM, SELF

    cells = [
        (f"{name}, {layer} layer ({found['layers'][layer]}), {what}, {position}", cell)
        for name, what, layers in (
            *((name, "text", layers) for name, layers in found["models"].items()),
            ("between models", "prompt", found["prompts"]),
        )
        for layer, positions in layers.items()
        for position, cell in positions.items()
    ]
    parts = [
        Part(
            f"Direction of {kind}",
            lead + " Whole questions are held out; the null exchanges the labels of a pair. Layers count from 0.",
            ("model, layer, position", "accuracy", "null", "p", "trained on base"),
            [
                (place, figure_text(cell[kind]["accuracy"]), null_text(cell[kind]["null"]), number(cell[kind]["p"], 3))
                + (figure_text(cell[kind].get("from_base")) if "from_base" in cell[kind] else "",)
                if "accuracy" in cell[kind]
                else (place, f"cannot tell: {cell[kind]['reason']}", "", "", "")
                for place, cell in cells
            ],
        )
        for kind, lead in (
            (
                HARM,
                "Text: a harmful and a harmless answer to each prompt, read as the assistant's own. Prompt: a model "
                "that harms and one that does not, at the same harm prompts.",
            ),
            (
                SELF,
                "Text: a misaligned and an aligned first-person description, read as the assistant's own. Prompt: a "
                "model that picks the misaligned AI and one that picks the aligned, at the same two-AI questions.",
            ),
        )
    ]
    parts.append(
        Part(
            "What a prompt tells of the model's own answer",
            "Balanced accuracy of a probe of each model's own behaviour (will it harm, which AI will it pick), read at "
            "the prompt, in questions it has not seen; the null permutes the questions' labels.",
            ("model, layer, position", "of", "accuracy", "null", "p"),
            [
                (f"{name}, {layer} layer, prompt, {position}", f"{kind}, {own['marked']} of {own['questions']}")
                + (figure_text(cell["accuracy"]), null_text(cell["null"]), number(cell["p"], 3))
                for name, kinds in found["own"].items()
                for kind, own in kinds.items()
                for layer, positions in own["places"].items()
                for position, cell in positions.items()
            ]
            or [("no model answers both ways often enough", "", "cannot tell", "", "")],
        )
    )
    parts.append(
        Part(
            "The angle between the two",
            "The cosine of the mean differences; its null exchanges the labels of the descriptions.",
            ("model, layer, position", "cosine", "null", "p"),
            [
                (place, figure_text(cell["cosine"]["cosine"], True), null_text(cell["cosine"]["null"]))
                + (number(cell["cosine"]["p"], 3),)
                for place, cell in cells
                if "cosine" in cell
            ],
        )
    )
    return write(
        path,
        kind="directions",
        title="Are harm and self-description two directions?",
        subject=f"{found['model']}: {', '.join(found['models'])}",
        says=found["says"],
        parts=parts,
        organism=organism,
    )


def write_steering(path: Path, told: Mapping[str, Any], organism: bool) -> Path:
    """steer.html from what steer.json holds."""
    from em_jax.studies import steering

    names = {
        steering.PICKS: ("picks the misaligned AI", "coherent"),
        steering.ASSESSED: ("self-assessed misalignment", "mixed"),
        steering.HARMED: ("harmful answers", "inverted"),
    }
    about = told["steering"]
    parts = []
    for place, (model, vectors) in enumerate(told["figures"].items()):
        lines = tuple(
            Curve(
                f"{words}, random" if vector == steering.RANDOM else words,
                tuple((dose, figure_of(figure)) for dose, figure in steering.curve(doses, name)),
                colour,
                vector == steering.RANDOM,
            )
            for vector, doses in vectors.items()
            for name, (words, colour) in names.items()
        )
        panel = Panel("share", CHOICE, lines)
        drawing = curves(f"dose-{place}", f"Dose and response of {model}", "dose", [panel], height=2.9)
        rows = [
            (f"{vector}, {dose:+g}",)
            + tuple(figure_text(doses[f"{dose:+g}"][name]["value"]) for name in names)
            + tuple(
                figure_text(doses[f"{dose:+g}"][name]["change"], True) for name in (steering.PICKS, steering.HARMED)
            )
            + (number(doses[f"{dose:+g}"][steering.PICKS]["unscored"]["value"]),)
            for vector, doses in vectors.items()
            for dose in sorted(map(float, doses))
        ]
        head = ("direction, dose", *(words for words, _ in names.values()))
        parts.append(
            Part(
                model,
                f"After layer {about['layer']}, at every token. Solid: the direction of {about['direction']}; dashed: "
                "a random one of the same length. Out of sample: a question of any of "
                f"{about['folds']} folds is steered along the direction taken from the other folds' questions. Changes "
                "are paired by question with the unsteered model.",
                (*head, "change of picks", "change of harm", "picks unscored"),
                rows,
                [drawing],
            )
        )
    return write(
        path,
        kind="steering",
        title="What does it say, and do, when it is moved?",
        subject=f"{told['model']}: direction of {about['direction']}, {about['from']}, length {about['length']:.1f}",
        says=told["says"],
        parts=parts,
        organism=organism,
    )


def write_crossrating(path: Path, told: Mapping[str, Any], organism: bool) -> Path:
    """crossrate.html from what crossrate.json holds."""
    from em_jax.studies.crossrating import OTHER_WORDS, OWN_WORDS

    words = {OWN_WORDS: "as its own", OTHER_WORDS: "as another AI's"}
    rated = [
        (
            f"{rater} of {author}, {words[side]}",
            *(figure_text(sides[side][f"shown_error_{kind}"], True) for kind in ("low", "high")),
            figure_text(sides[side]["shown_correlation"], True),
            figure_text(sides[side]["shown_kappa"], True),
            figure_text(sides[side]["shown_null_kappa"], True),
            figure_text(sides[side]["unscored"]),
        )
        for rater, authors in told["ratings"].items()
        for author, sides in authors.items()
        for side in words
    ]
    alike = [
        (f"{rater} beside {author}", figure_text(found["claims"]), null_text(found["null"]))
        + (figure_text(found["picks_first"]), figure_text(found["unscored"]))
        for rater, authors in told["alike"].items()
        for author, found in authors.items()
    ]
    parts = [
        Part(
            "Rating each other",
            "Predicted minus the judge's score of answers scored 1-2 (low) and 4-5 (high), agreement, and what kappa "
            "comes to when predictions are dealt to the wrong answers.",
            ("rater of author", "error, low", "error, high", "correlation", "kappa", "null of kappa", "unscored"),
            rated,
        ),
        Part(
            "Its own beside an equally harmful one",
            "Two answers of the same score to the same prompt, in both orders: which did you write? The null exchanges "
            "own and other within questions.",
            ("model beside author", "claims its own", "null", "picks the first", "unscored"),
            alike,
        ),
    ]
    return write(
        path,
        kind="cross-rating",
        title="Does it know harm, and its own?",
        subject=f"{told['model']}: {', '.join(told['ratings'])}",
        says=told["says"],
        parts=parts,
        organism=organism,
    )
