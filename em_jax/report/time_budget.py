"""The time budget of a run: how long each stage took, what the time went to, and how much was done in it."""

from dataclasses import dataclass
from typing import Any

from em_jax.report.reading import as_object
from em_jax.report.text import finite
from em_jax.report.vocabulary import STAGES

KINDS = {"loading": "loading", "compiling": "compiling", "waiting": "waiting for the device"}
MEMORY = {"peak_bytes": "memory", "device_peak_bytes": "a device's memory"}
UNITS = ("tokens", "steps", "answers", "scores", "questions")


@dataclass(frozen=True)
class Amount:
    """An amount of work with its rate per second, or seconds of one kind with their share of the stage."""

    name: str
    value: float
    part: float


@dataclass(frozen=True)
class StageTime:
    """A stage's seconds and its share of the run; where recorded, the work done, the seconds by kind, peak memory.

    `memory` has gigabytes, of the process and of one device.
    """

    name: str
    seconds: float
    share: float
    work: tuple[Amount, ...]
    kinds: tuple[Amount, ...]
    memory: tuple[tuple[str, float], ...] = ()


def stage_times(provenance: dict[str, Any]) -> list[StageTime]:
    """The stages in the order of a run."""
    seconds = _amounts(as_object(provenance.get("wall_seconds")))
    total = sum(seconds.values()) or 1.0
    order = sorted(seconds, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))
    budgets = as_object(provenance.get("time_budget"))
    amounts = {name: _amounts(as_object(budgets.get(name))) for name in order}
    memory = {
        stage: tuple((where, each[name] / 1e9) for name, where in MEMORY.items() if each.get(name))
        for stage, each in amounts.items()
    }
    return [
        StageTime(name, seconds[name], seconds[name] / total, *_budget(amounts[name]), memory[name]) for name in order
    ]


def _budget(amounts: dict[str, float]) -> tuple[tuple[Amount, ...], tuple[Amount, ...]]:
    whole = amounts.get("seconds")
    if not whole:
        return (), ()
    work = tuple(Amount(name, amounts[name], amounts[name] / whole) for name in UNITS if amounts.get(name))
    kinds = {label: min(amounts.get(kind, 0.0), whole) for kind, label in KINDS.items()}
    kinds["the host's own work"] = max(0.0, whole - sum(kinds.values()))
    return work, tuple(Amount(label, value, value / whole) for label, value in kinds.items() if value)


def _amounts(record: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite and not negative."""
    return {name: value for name, entry in record.items() if (value := finite(entry)) is not None and value >= 0}
