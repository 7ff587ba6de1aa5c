"""What there is to browse: one item per question, the base's side and the fine-tuned model's side by side.

A page with every answer of a full run would be tens of megabytes. So each probe shows at most MAX_ITEMS questions,
evenly spaced over the sorted ids (no choice by outcome), each text is cut at a length, and both say so.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from em_jax.report.reading import CHOICE_PROBES, CONDITIONS, Row, Run, as_object
from em_jax.report.text import DASH, excerpt, finite, is_number, number, one_line

MAX_ITEMS = 120
MAX_ANSWER = 2_000
MAX_PROMPT = 1_200
MAX_SAMPLED = 400
MAX_READINGS = 40
# From which distance on two models disagree: in the judge's points, else in shares.
LARGE_GAP = defaultdict(lambda: 0.5, harmfulness=2.0, score_prediction=1.5)
# Probes about each model's own answers: the two models are asked about different texts.
ABOUT_OWN = ("output_recognition", "score_prediction")


SIDE: dict[str, Any] = {"badge": "", "level": None, "thought": None, "answer": None, "notes": (), "others": ()}
SIDE |= {"readings": (), "readings_total": 0}
"""One model's part of an item: of harmfulness an answer, its score, and those of the others; else `readings`."""
Record = dict[str, Any]
"""What a template reads of an item, a side or a reading."""


@dataclass(frozen=True)
class Shelf:
    """The items of one probe on the page, and how many there are in the run."""

    probe: str
    items: tuple[Record, ...]
    total: int


def shelves(run: Run) -> list[Shelf]:
    """Everything to browse in a run, by probe; probes without rows are left out."""
    prompts = {str(row.get("id")): prompt_text(row.get("prompt")) for side in CONDITIONS for row in run.answers[side]}
    shelves = []
    for probe in ("harmfulness", *CHOICE_PROBES):
        rows = [run.judged(side) if probe == "harmfulness" else run.probes[side][probe] for side in CONDITIONS]
        by_id = [_by_question(each) for each in rows]
        ids = sorted({*by_id[0], *by_id[1]})
        shown = min(len(ids), MAX_ITEMS)
        items = (
            _item(probe, identity, prompts.get(identity, ""), *(side.get(identity, []) for side in by_id))
            for identity in (ids[index * len(ids) // shown] for index in range(shown))
        )
        shelves.append(Shelf(probe, tuple(items), len(ids)))
    return [shelf for shelf in shelves if shelf.total]


def _by_question(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the prompt they are about, else by their own id, each list sorted by sample, id and order."""
    by_question = defaultdict(list)
    for row in rows:
        by_question[str(row.get("question") or row.get("id"))].append(row)
    for question in by_question.values():
        question.sort(key=lambda row: (str(row.get("sample")).zfill(12), str(row.get("id")), str(row.get("first"))))
    return by_question


def _item(probe: str, identity: str, about: str, base: list[Row], finetuned: list[Row]) -> Record:
    """One question with both sides, and what it can be filtered by; `about` is the harm prompt it is about, if any.

    `scores` are the judge's scores of the fine-tuned model's answers, of the base's where it is alone. `gap` is the
    distance of the two models over the distance that counts as disagreement; None without two values.
    """
    rows = [*finetuned, *base]
    prompt = prompt_text(next((row["prompt"] for row in rows if row.get("prompt")), ""))
    if probe == "harmfulness":
        sides = [_harm_side(base), _harm_side(finetuned)]
        values = [finite(side and side["level"]) for side in sides]
        scores = [_level(row["judged"].get("score")) for row in finetuned or base]
        is_unscored = any(DASH in side["others"] for side in sides if side)
    else:
        sides = [_choice_side(probe, base), _choice_side(probe, finetuned)]
        values = [_mean(map(_compared_value, side)) for side in (base, finetuned)]
        scores = [level for row in finetuned or base for level in _own_levels(row)]
        is_unscored = any(not is_number(row.get("value")) for row in rows)
    tags = [next((str(row[key]) for row in rows for key in ("dimension", "theme") if row.get(key)), "")]
    tags += [str(rows[0].get("format") or "")] if probe == "self_assessment" else []
    gap = None if values[0] is None or values[1] is None else abs(values[0] - values[1]) / LARGE_GAP[probe]
    return {
        "probe": probe,
        "id": identity,
        "title": one_line(about or prompt, 140),
        "tag": " · ".join(filter(None, tags)),
        "prompt": None if probe in ABOUT_OWN else excerpt(prompt, MAX_PROMPT),
        "base": sides[0],
        "finetuned": sides[1],
        "scores": tuple(sorted({level for level in scores if level})),
        "gap": gap,
        "disagrees": gap is not None and gap >= 1,
        "unscored": is_unscored,
    }


def _harm_side(answers: list[Row]) -> Record | None:
    """The most harmful of a prompt's answers (the earliest of equals), with the scores of all of them."""
    if not answers:
        return None
    levels = [_level(row["judged"].get("score")) for row in answers]
    worst = max(range(len(answers)), key=lambda index: (levels[index] or 0, -index))
    row, level = answers[worst], levels[worst]
    judged = row["judged"]
    notes = [f"answer {worst + 1} of {len(answers)}" + (", the most harmful" if len(answers) > 1 and level else "")]
    if is_number(row.get("n_tokens")):
        notes.append(f"{row['n_tokens']} tokens")
    if row.get("finish_reason") == "length":
        notes.append("cut at the length limit")
    if is_number(judged.get("expected")):
        notes.append(f"expected score {number(judged['expected'])}")
    if level is None:
        notes.append("not scored: " + str(judged.get("reason") or "no score in the file"))
    scores = tuple(str(level) if level else DASH for level in levels)
    thought = excerpt(row["thought"], MAX_ANSWER) if row.get("thought") else None
    texts = {"thought": thought, "answer": excerpt(row.get("answer"), MAX_ANSWER)}
    return SIDE | texts | {"badge": scores[worst], "level": level, "notes": notes, "others": scores}


def _choice_side(probe: str, rows: list[Row]) -> Record | None:
    """The readings of a choice question; those about the model's own answers have each such answer with them."""
    if not rows:
        return None
    if probe in ABOUT_OWN:  # the readings about one answer stand together
        rows = sorted(rows, key=lambda row: str(row.get("id")))
    asked = [str(row.get("id")) if probe in ABOUT_OWN and row.get("prompt") else "" for row in rows]
    new = [name not in ("", before) for name, before in zip(asked, ["", *asked])]
    readings = [_reading(probe, row, is_new) for row, is_new in list(zip(rows, new))[:MAX_READINGS]]
    badge = number(_mean(row.get("value") for row in rows))
    return SIDE | {"badge": badge, "readings": readings, "readings_total": len(rows)}


def _reading(probe: str, row: Row, shows_prompt: bool) -> Record:
    """One answer to a choice question: in which order or form (`label`), the options' shares, and the value.

    `asked` is what was asked, where it is not what was asked in the reading before: another of the model's own answers.
    """
    labels = []
    if probe == "score_prediction" and row.get("format"):
        labels.append("before answering" if row["format"] == "blind" else str(row["format"]))
    if probe in ABOUT_OWN and (levels := _own_levels(row)):
        labels.append("own answer scored " + " or ".join(map(str, levels)))
    if row.get("first"):
        labels.append(f"{row['first']} first")
    if row.get("text") is not None:
        labels.append("sampled")
    value = finite(row.get("value"))
    return {
        "label": ", ".join(labels) or "asked once",
        "asked": excerpt(prompt_text(row["prompt"]), MAX_PROMPT) if shows_prompt else None,
        "options": _options(row.get("logprobs")),
        "mass": finite(row.get("mass")),
        "value": value,
        "sampled": None if row.get("text") is None else excerpt(row["text"], MAX_SAMPLED),
        "reason": str(row.get("reason") or ("no reason given" if value is None else "")),
    }


def _options(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """(option, normalised probability) of the at most three likeliest options."""
    known = {str(option): value for option, value in as_object(logprobs).items() if is_number(value)}
    top = max(known.values(), default=0.0)
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


def _own_levels(row: Row) -> list[int]:
    """The judge's scores of the model's own answers that a row is about."""
    scores = [row.get("score"), *as_object(row.get("actual")).values()]
    return sorted({level for score in scores if (level := _level(score))})


def _compared_value(row: Row) -> float | None:
    """What two models are compared by: the value, or for a prediction its error."""
    value = finite(row.get("value"))
    if value is not None and row.get("format") in ("blind", "shown") and (levels := _own_levels(row)):
        return value - sum(levels) / len(levels)
    return value


def _level(score: Any) -> int | None:
    return int(score) if is_number(score) and 1 <= score <= 5 else None


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if is_number(value)]
    return sum(numbers) / len(numbers) if numbers else None
