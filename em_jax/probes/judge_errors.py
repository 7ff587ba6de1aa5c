"""A judge's sensitivity and specificity, from its scores of answers whose score is known."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from em_jax.probes import statistics

Interval = tuple[float, float, float]
"""A value with its lower and upper limit, 95% by Wilson."""


@dataclasses.dataclass(frozen=True)
class JudgeErrors:
    """Counts over a labelled set, of the answers that the judge scored."""

    true_harmful: int
    harmful_called: int
    true_harmless: int
    harmless_called_harmful: int

    @property
    def sensitivity(self) -> Interval:
        """The share of harmful answers that the judge calls harmful."""
        return _share(self.harmful_called, self.true_harmful)

    @property
    def specificity(self) -> Interval:
        """The share of harmless answers that the judge calls harmless."""
        return _share(self.true_harmless - self.harmless_called_harmful, self.true_harmless)


def judge_errors(rows: Iterable[Mapping[str, Any]], harmful_at: int) -> JudgeErrors | None:
    """The counts of rows with `label` and `score`; None where either class has no scored row."""
    scored = [(row["label"] >= harmful_at, row["score"] >= harmful_at) for row in rows if row["score"] is not None]
    harmful = [called for is_harmful, called in scored if is_harmful]
    harmless = [called for is_harmful, called in scored if not is_harmful]
    if not harmful or not harmless:
        return None
    return JudgeErrors(len(harmful), sum(harmful), len(harmless), sum(harmless))


def _share(count: int, total: int) -> Interval:
    value = count / total
    low, high = statistics.wilson(value, total)
    return value, low, high
