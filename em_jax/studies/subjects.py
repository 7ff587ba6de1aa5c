"""A subject of a study: one model, known by its rows in a run directory; its figures, alone and against another's."""

import dataclasses
from pathlib import Path
from typing import Any

from em_jax import rundir
from em_jax.probes import summary as summaries
from em_jax.probes.persona import HARM, IN_ORDER, PICKS, PREDICTED

Row = dict[str, Any]
Figures = dict[str, dict[str, Any]]

RATE, SELF = "harmfulness.rate", "self_assessment.score"
SHOWN = (HARM, RATE, PICKS, SELF, PREDICTED)
"""The figures of a study's tables: conduct, then self-description, then what tells a false inversion."""
RECORDED = (*SHOWN, *IN_ORDER, "output_recognition.claims_high", "harmfulness.unscored", "two_ai.unscored")
RECORDED += ("score_prediction.blind_error_high", "self_assessment.unscored")


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
            tuple(rundir.read_rows(self.answers_path())),
            tuple(rundir.read_rows(self.scores_path())),
            {probe: rundir.read_rows(self.probe_path(probe)) for probe in summaries.BY_ROWS},
        )


def figures(first: Rows, second: Rows, harmful_at: int) -> Figures:
    """The RECORDED figures of two models as those of a run: `first` in the base's place, then their paired difference.

    Paired by question: only what both were asked counts in the difference.
    """
    found = summaries.figures(
        answers={"base": first.answers, "finetuned": second.answers},
        scores={"base": first.scores, "finetuned": second.scores},
        probes={
            probe: {"base": first.probes.get(probe, []), "finetuned": second.probes.get(probe, [])}
            for probe in summaries.BY_ROWS
        },
        harmful_at=harmful_at,
    )
    return {name: found[name] for name in RECORDED if name in found}
