"""What there is to browse: one item per question, the base's side and the fine-tuned model's side by side.

A page that held every answer of a full run would be tens of megabytes. So each probe shows at most MOST_ITEMS
questions, evenly spaced over the sorted ids (no choice by outcome), each text is cut at a length, and both say so.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from em_jax.report.reading import CHOICE_PROBES, CONDITIONS, Row, Run
from em_jax.report.text import Shown, is_number, number, one_line, shown
from em_jax.report.vocabulary import PROBE_TITLES

MOST_ITEMS = 120
MOST_ANSWER = 2_000
MOST_PROMPT = 1_200
MOST_SAMPLED = 400
MOST_READINGS = 8
# From which distance on two models disagree: in the judge's points, else in shares.
LARGE_GAP = {"harmfulness": 2, "score_prediction": 1.5}
# Probes about each model's own answers: the two models are asked about different texts.
ABOUT_OWN = ("output_recognition", "score_prediction")


@dataclass(frozen=True)
class Reading:
    """One time a question was asked: in which order or form, the options' shares, what it came to."""

    label: str
    options: tuple[tuple[str, float], ...]
    mass: float | None
    value: float | None
    sampled: Shown | None
    reason: str


@dataclass(frozen=True)
class Side:
    """One model's part of an item."""

    badge: str = ""
    level: int | None = None
    asked: Shown | None = None
    answer: Shown | None = None
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    readings_total: int = 0


@dataclass(frozen=True)
class Item:
    """One question with both sides, and what it can be filtered by."""

    probe: str
    probe_title: str
    id: str
    title: str
    tag: str
    prompt: Shown | None
    base: Side | None
    finetuned: Side | None
    score: int | None
    gap: float | None
    """How far the two models are apart, as a part of what counts as disagreement; None where one says nothing."""
    unscored: bool

    @property
    def disagrees(self) -> bool:
        return self.gap is not None and self.gap >= 1


@dataclass(frozen=True)
class Shelf:
    """The items of one probe that the page holds, and how many there are in the run."""

    probe: str
    title: str
    items: tuple[Item, ...]
    total: int


def shelves(run: Run) -> list[Shelf]:
    """Everything to browse in a run, by probe; probes that asked nothing are left out."""
    made = [_shelf("harmfulness", *_harm_questions(run))]
    asked = {
        str(row.get("id")): prompt_text(row.get("prompt")) for condition in CONDITIONS for row in run.answers[condition]
    }
    for probe in CHOICE_PROBES:
        by_id = {condition: _by_id(run.probes[condition][probe], "question") for condition in CONDITIONS}
        ids = sorted({*by_id["base"], *by_id["finetuned"]})

        def make(identity: str, probe: str = probe, by_id: dict = by_id) -> Item:
            sides = (by_id[condition].get(identity, []) for condition in CONDITIONS)
            return _choice_item(probe, identity, asked.get(identity, ""), *sides)

        made.append(_shelf(probe, ids, make))
    return [shelf for shelf in made if shelf.total]


def _shelf(probe: str, ids: Sequence[str], make: Callable[[str], Item]) -> Shelf:
    return Shelf(probe, PROBE_TITLES[probe], tuple(make(identity) for identity in evenly(ids, MOST_ITEMS)), len(ids))


def evenly(items: Sequence, most: int) -> list:
    """At most `most` of the items, evenly spaced, in their order."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _by_id(rows: Iterable[Row], key: str = "id") -> dict[str, list[Row]]:
    """Rows by the question they belong to: what `key` names (the prompt they are about), else their id."""
    found = defaultdict(list)
    for row in rows:
        found[str(row.get(key) or row.get("id"))].append(row)
    return found


def _harm_questions(run: Run) -> tuple[list[str], Callable[[str], Item]]:
    answers = {condition: _by_id(run.answers[condition]) for condition in CONDITIONS}
    scores = {
        condition: {(str(row.get("id")), row.get("sample")): row for row in run.scores[condition]}
        for condition in CONDITIONS
    }
    ids = sorted({*answers["base"], *answers["finetuned"]})

    def make(identity: str) -> Item:
        rows = [row for condition in CONDITIONS for row in answers[condition].get(identity, [])]
        sides = [
            _harm_side(identity, answers[condition].get(identity, []), scores[condition]) for condition in CONDITIONS
        ]
        levels = [side.level for side in sides if side and side.level]
        main = sides[1] or sides[0]
        prompt = prompt_text(rows[0].get("prompt"))
        return Item(
            probe="harmfulness",
            probe_title=PROBE_TITLES["harmfulness"],
            id=identity,
            title=one_line(prompt, 140),
            tag="",
            prompt=shown(prompt, MOST_PROMPT),
            base=sides[0],
            finetuned=sides[1],
            score=main.level if main else None,
            gap=abs(levels[0] - levels[1]) / LARGE_GAP["harmfulness"] if len(levels) == 2 else None,
            unscored=any("–" in side.others for side in sides if side),
        )

    return ids, make


def _harm_side(identity: str, answers: list[Row], scores: dict[tuple, Row]) -> Side | None:
    """The most harmful of a prompt's answers (the earliest of equals), with the scores of all of them."""
    if not answers:
        return None
    answers = sorted(answers, key=lambda row: _order(row.get("sample")))
    found = [scores.get((identity, row.get("sample")), {}) for row in answers]
    levels = [_level(row.get("score")) for row in found]
    worst = max(range(len(answers)), key=lambda place: (levels[place] or 0, -place))
    row, score, level = answers[worst], found[worst], levels[worst]
    notes = [f"answer {worst + 1} of {len(answers)}" + (", the most harmful" if len(answers) > 1 and level else "")]
    if is_number(row.get("n_tokens")):
        notes.append(f"{row['n_tokens']} tokens")
    if row.get("finish_reason") == "length":
        notes.append("cut at the length limit")
    if is_number(score.get("expected")):
        notes.append(f"expected score {number(score['expected'])}")
    if level is None:
        notes.append("not scored: " + str(score.get("reason") or "no score in the file"))
    return Side(
        badge=str(level) if level else "–",
        level=level,
        answer=shown(row.get("answer"), MOST_ANSWER),
        notes=tuple(notes),
        others=tuple(str(level) if level else "–" for level in levels),
    )


def _choice_item(probe: str, identity: str, asked: str, base: list[Row], finetuned: list[Row]) -> Item:
    """An item of one of the four choice probes; `asked` is the harm prompt it is about, if any.

    Recognition and prediction are asked about each model's own answers, so there the sides carry their own prompts.
    """
    rows = [*finetuned, *base]
    about_own = probe in ABOUT_OWN
    prompt = prompt_text(next((row["prompt"] for row in rows if row.get("prompt")), ""))
    values = [_mean(map(_compared, side)) for side in (base, finetuned)]
    level = max(filter(None, (own_level(row) for row in finetuned or base)), default=None)
    tag = next((str(row[key]) for row in rows for key in ("dimension", "theme") if row.get(key)), "")
    form = str(rows[0].get("format") or "") if probe == "self_assessment" else ""
    return Item(
        probe=probe,
        probe_title=PROBE_TITLES[probe],
        id=identity,
        title=one_line(asked or prompt, 140),
        tag=" · ".join(filter(None, (tag, form))),
        prompt=None if about_own else shown(prompt, MOST_PROMPT),
        base=_choice_side(probe, base),
        finetuned=_choice_side(probe, finetuned),
        score=level,
        gap=None if None in values else abs(values[0] - values[1]) / LARGE_GAP.get(probe, 0.5),
        unscored=any(not is_number(row.get("value")) for row in rows),
    )


def _choice_side(probe: str, rows: list[Row]) -> Side | None:
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: (_order(row.get("sample")), str(row.get("id")), str(row.get("first"))))
    asked = next((row["prompt"] for row in rows if row.get("prompt")), None) if probe in ABOUT_OWN else None
    return Side(
        badge=number(_mean(row.get("value") for row in rows)),
        asked=None if asked is None else shown(prompt_text(asked), MOST_PROMPT),
        readings=tuple(_reading(probe, row) for row in rows[:MOST_READINGS]),
        readings_total=len(rows),
    )


def _reading(probe: str, row: Row) -> Reading:
    parts = []
    if probe == "score_prediction" and row.get("format"):
        parts.append("before answering" if row["format"] == "blind" else str(row["format"]))
    if probe in ABOUT_OWN and (levels := _own_levels(row)):
        parts.append("own answer scored " + " or ".join(map(str, levels)))
    if row.get("first"):
        parts.append(f"{row['first']} first")
    if row.get("text") is not None:
        parts.append("sampled")
    value = row.get("value")
    return Reading(
        label=", ".join(parts) or "asked once",
        options=_options(row.get("logprobs")),
        mass=row.get("mass") if is_number(row.get("mass")) else None,
        value=value if is_number(value) else None,
        sampled=None if row.get("text") is None else shown(row["text"], MOST_SAMPLED),
        reason=str(row.get("reason") or ("" if is_number(value) else "no reason given")),
    )


def _options(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """The options' normalised probabilities, at most the three likeliest."""
    if not isinstance(logprobs, dict):
        return ()
    known = {str(option): value for option, value in logprobs.items() if is_number(value)}
    if not known:
        return ()
    top = max(known.values())
    weights = {option: math.exp(value - top) for option, value in known.items()}
    total = sum(weights.values())
    ranked = sorted(weights, key=lambda option: (-weights[option], option))
    return tuple((one_line(option, 40), weights[option] / total) for option in ranked[:3])


def prompt_text(prompt: Any) -> str:
    """A prompt as text: itself, or its messages (a lone user message without its role)."""
    if not isinstance(prompt, list):
        return "" if prompt is None else str(prompt)
    messages = [message for message in prompt if isinstance(message, dict)]
    if len(messages) == 1 and messages[0].get("role") == "user":
        return str(messages[0].get("content") or "")
    return "\n\n".join(f"{message.get('role')}: {message.get('content') or ''}" for message in messages)


def own_level(row: Row) -> int | None:
    """The judge's score of the own answer a row is about, the highest where it is about several."""
    return max(_own_levels(row), default=None)


def _own_levels(row: Row) -> list[int]:
    actual = row.get("actual")
    scores = [row.get("score"), *(actual.values() if isinstance(actual, dict) else ())]
    return sorted({level for score in scores if (level := _level(score))})


def _compared(row: Row) -> float | None:
    """What two models are compared by: the value, or for a prediction how far it is off."""
    value = row.get("value")
    if is_number(value) and row.get("format") in ("blind", "shown") and (levels := _own_levels(row)):
        return value - sum(levels) / len(levels)
    return value


def _level(score: Any) -> int | None:
    return int(score) if is_number(score) and 1 <= score <= 5 else None


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if is_number(value)]
    return sum(numbers) / len(numbers) if numbers else None


def _order(sample: Any) -> tuple[int, Any]:
    return (0, sample) if is_number(sample) else (1, str(sample))
