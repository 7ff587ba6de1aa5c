"""The sentences, curves and tables of the study of steering, from the content of steer.json."""

from collections.abc import Mapping
from typing import Any

from em_jax.probes.cautions import PICKS
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import show
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.reading import figure_of
from em_jax.report.vocabulary import CHOICE
from em_jax.studies.between import majority
from em_jax.studies.contrast import HARM, SELF
from em_jax.studies.page import Section, cell
from em_jax.studies.subjects import RATE
from em_jax.studies.subjects import SELF as ASSESSED

KIND, TITLE = "steering", "What does it say, and do, when it is moved?"
RANDOM = "random"
UNSCORED = {PICKS: "two_ai.unscored", ASSESSED: "self_assessment.unscored", RATE: "harmfulness.unscored"}
"""The figures, each with that of its unscored answers."""
CURVES = {
    PICKS: ("picks the misaligned AI", "coherent"),
    ASSESSED: ("self-assessed misalignment", "mixed"),
    RATE: ("harmful answers", "inverted"),
}
"""Names and colours."""
TARGET = {SELF: PICKS, HARM: RATE}
"""The figure that a direction should move; the other direction's should not move."""
WORDS = {PICKS: "its pick of the misaligned AI", RATE: "its share of harmful answers"}
PERSONAS = {(True, True): "a coherent", (True, False): "an inverted", (False, False): "an aligned"}
"""By whether a model harms and whether it picks the misaligned AI."""
# A smaller side effect counts as small.
SMALL = 0.1


def subject(record: Mapping[str, Any]) -> str:
    """The direction."""
    about = record["steering"]
    return f"direction of {about['direction']}, {about['from']}, length {about['length']:.1f}"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """For each model the dose at which the target flipped, the side effect and the control."""
    lines = []
    direction = record["steering"]["direction"]
    if record["steering"]["origin"].get("same_otherwise") is False:
        lines.append(
            "The direction is taken between models that differ in conduct and in self-description at once: its effects "
            "cannot be attributed to one of them. Adding a run of the other persona would separate them."
        )
    for name, vectors in record["figures"].items():
        lines += _flip(name, vectors[direction], vectors[RANDOM], direction)
    return [*lines, "The control is a single random direction, and only these doses were asked."]


def _flip(name: str, doses: Mapping[str, Any], control: Mapping[str, Any], direction: str) -> list[str]:
    target, other = TARGET[direction], TARGET[HARM if direction == SELF else SELF]
    start = doses["+0"]
    few = [figure for figure in UNSCORED if (start[figure]["value"]["n"] or 0) < THRESHOLDS.least_questions]
    if few:
        return [f"{name}: cannot conclude, under {THRESHOLDS.least_questions} questions in {', '.join(few)}."]
    first = start[target]["value"]["value"]
    dose = _flip_dose(doses, first, target)
    if dose is None:
        return [f"{name}: {WORDS[target]} ({first:.0%}) did not flip at any of the doses."]
    at = doses[dose]
    value = at[target]["value"]
    line = f"{name}: at dose {dose} {WORDS[target]} flipped from {first:.0%} to {value['value']:.0%} (n {value['n']})"
    was, became = (
        PERSONAS.get((majority(it[RATE]["value"]), majority(it[PICKS]["value"])))  # type: ignore[arg-type]
        for it in (start, at)
    )
    persona = f", from {was} model to {became} one" if was and became and was != became else ""
    line += f"; {_side_effect(at[other], WORDS[other])}{persona}."
    along = control[dose][target]["value"]
    random = f"{name}: a random direction of that length"
    if along["value"] is None:
        return [line, f"{random} left no scored answer at that dose: the control says nothing."]
    if (along["value"] - THRESHOLDS.even) * (first - THRESHOLDS.even) > 0:
        return [line, f"{random} leaves {WORDS[target]} at {along['value']:.0%}."]
    return [line, f"{random} flips it too: the length is enough."]


def _side_effect(figure: Mapping[str, Any], words: str) -> str:
    """How far the figure that should not move did; an answer without a score is neither harmful nor harmless."""
    moved, unscored = figure["change"], figure["unscored"]["value"]
    if moved["value"] is None or (unscored or 0) > THRESHOLDS.most_unscored:
        lost = "all" if unscored is None else f"{unscored:.0%}"
        return f"the side effect on {words} is unknown: {lost} of its answers are unscored"
    size = f"not less than {SMALL}"
    if abs(moved["value"]) < SMALL:
        within = moved["ci_low"] > -SMALL and moved["ci_high"] < SMALL
        size = f"less than {SMALL}, {'as is its whole interval' if within else 'but its interval contains more'}"
    return f"as a side effect {words} moved by {show(moved, '+')}, {size}"


def _flip_dose(doses: Mapping[str, Any], first: float, target: str) -> str | None:
    """The smallest dose at which the target's whole interval is on the other side of one half, and mostly scored."""
    for dose in sorted(doses, key=lambda text: abs(float(text))):
        value, unscored = doses[dose][target]["value"], doses[dose][target]["unscored"]["value"]
        if value["value"] is None or value["ci_low"] is None or (unscored or 0) > THRESHOLDS.most_unscored:
            continue
        if (value["ci_high"] < THRESHOLDS.even) if first > THRESHOLDS.even else (value["ci_low"] > THRESHOLDS.even):
            return dose
    return None


def sections(record: Mapping[str, Any]) -> list[Section]:
    """Per model the curves and a table of all doses."""
    about = record["steering"]
    lead = (
        f"After layer {about['layer']}, at every token. Solid: the direction of {about['direction']}; dashed: a random "
        f"one of the same length. Out of sample: the questions of each of {about['folds']} folds are steered along the "
        "direction taken from the other folds' questions. Changes are paired by question with the unsteered model."
    )
    result = []
    for index, (model, vectors) in enumerate(record["figures"].items()):
        lines, rows = [], []
        for vector, by_dose in vectors.items():
            doses = sorted(((float(dose), it) for dose, it in by_dose.items()), key=lambda point: point[0])
            for name, (words, colour) in CURVES.items():
                points = tuple((dose, figure_of(figures[name]["value"])) for dose, figures in doses)
                dashed = vector == RANDOM
                lines.append(Curve(f"{words}, random" if dashed else words, points, colour, dashed))
            for dose, figures in doses:
                values = [cell(figures[name]["value"]) for name in CURVES]
                changes = [cell(figures[name]["change"], CHOICE.difference) for name in (PICKS, RATE)]
                rows.append([f"{vector}, {dose:+g}", *values, *changes, cell(figures[PICKS]["unscored"])])
        panel = Panel("share", CHOICE, tuple(lines))
        drawing = curves(f"dose-{index}", f"Dose and response of {model}", "dose", [panel], height=2.9)
        head = ("direction, dose", *(words for words, _ in CURVES.values()))
        head += ("change of picks", "change of harm", "picks unscored")
        result.append(Section(model, [lead], head, rows, [drawing]))
    return result
