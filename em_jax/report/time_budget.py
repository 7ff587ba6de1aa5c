"""The time budget of a run: how long each stage took, what it went to, and how much was done in it."""

from dataclasses import dataclass
from typing import Any

from em_jax.report.text import is_number
from em_jax.report.vocabulary import STAGES

KINDS = {"loading": "loading", "compiling": "compiling", "waiting": "waiting for the device"}
UNITS = ("tokens", "steps", "answers", "scores", "questions")


@dataclass(frozen=True)
class Amount:
    """So much of something, and how much of it a second (work), or which share of the stage's time (seconds)."""

    name: str
    value: float
    part: float


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, its part of the whole, and as far as the record says what it went to and what it did."""

    name: str
    seconds: float
    share: float
    work: tuple[Amount, ...] = ()
    spent: tuple[Amount, ...] = ()


def stage_times(provenance: dict[str, Any]) -> list[StageTime]:
    """The stages in the order a run takes them; a stage's wall time may be a number or {"seconds": number}."""
    times = next(
        (provenance[key] for key in ("wall_times", "wall_seconds") if isinstance(provenance.get(key), dict)), {}
    )
    seconds = {
        str(name): value.get("seconds") if isinstance(value, dict) else value
        for name, value in times.items()
        if str(name) != "total"
    }
    seconds = {name: float(value) for name, value in seconds.items() if is_number(value) and value >= 0}
    total = sum(seconds.values())
    order = sorted(seconds, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))
    return [
        StageTime(name, seconds[name], seconds[name] / total if total else 0.0, *_budget(provenance, name))
        for name in order
    ]


def _budget(provenance: dict[str, Any], stage: str) -> tuple[tuple[Amount, ...], tuple[Amount, ...]]:
    """(work, seconds by kind) of a stage from `time_budget`; what is no sensible number there is left out."""
    budgets = provenance.get("time_budget")
    given = budgets.get(stage) if isinstance(budgets, dict) else None
    given = given if isinstance(given, dict) else {}
    found = {name: float(value) for name, value in given.items() if is_number(value) and value >= 0}
    whole = found.get("seconds", 0.0)
    if not whole:
        return (), ()
    work = tuple(Amount(name, found[name], found[name] / whole) for name in UNITS if found.get(name))
    kinds = {words: min(found.get(kind, 0.0), whole) for kind, words in KINDS.items()}
    kinds["the host's own work"] = max(0.0, whole - sum(kinds.values()))
    return work, tuple(Amount(words, value, min(1.0, value / whole)) for words, value in kinds.items() if value)
