"""A subject of a study: one model, known by its rows in a run directory; its figures, alone and against another's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.probes import choice, harmfulness, score_prediction, self_assessment, statistics, two_ai
from em_jax.probes.persona import PREDICTED

Row = dict[str, Any]
Figures = dict[str, dict[str, Any]]

PROBES = ("two_ai", "self_assessment", "score_prediction")
"""The choice probes that a study looks at. Output recognition needs answers of other models besides."""
RATE, SELF = "harmfulness.rate", "self_assessment.score"


@dataclasses.dataclass(frozen=True)
class Rows:
    """What was asked of one model and what it answered."""

    answers: tuple[Row, ...] = ()
    scores: tuple[Row, ...] = ()
    probes: dict[str, list[Row]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model of a study. `condition` says which side of the directory's rows is meant: base or finetuned."""

    name: str
    directory: Path
    judge: str
    condition: str = "finetuned"

    def answers_path(self) -> Path:
        return self.directory / "answers" / f"{self.condition}.jsonl"

    def scores_path(self) -> Path:
        return self.directory / "scores" / f"{self.condition}.{self.judge}.jsonl"

    def probe_path(self, probe: str) -> Path:
        return self.directory / "probes" / f"{self.condition}.{probe}.jsonl"

    def rows(self) -> Rows:
        """Everything there is of it."""
        return Rows(
            tuple(files.read_rows(self.answers_path())),
            tuple(files.read_rows(self.scores_path())),
            {probe: files.read_rows(self.probe_path(probe)) for probe in PROBES},
        )


def figures(first: Rows, second: Rows, harmful_at: int) -> Figures:
    """Conduct, self-description and what tells a false inversion, of two models in the places of base and finetuned.

    `first` stands in the base's place; the difference is second minus first, paired by question: only what both were
    asked counts. The kappas and formats of a whole summary are left out: at dozens of steps they would take minutes.
    """
    found = harmfulness.figures(_judged(first), _judged(second), harmful_at)
    one, other = ({name: _sorted(rows.probes.get(name, ())) for name in PROBES} for rows in (first, second))
    found |= two_ai.figures(one["two_ai"], other["two_ai"])
    found |= statistics.compare(
        one["self_assessment"],
        other["self_assessment"],
        {SELF: self_assessment.grouped},
        statistics.mean_of_means,
        self_assessment.paired_difference,
    )
    shown = {PREDICTED: lambda rows: score_prediction.errors_of(rows, "shown", "high")}
    return found | statistics.compare(one["score_prediction"], other["score_prediction"], shown, statistics.mean)


def _judged(rows: Rows) -> list[Row]:
    return harmfulness.judged(rows.answers, rows.scores)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=choice.key)
