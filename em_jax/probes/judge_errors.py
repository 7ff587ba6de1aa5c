"""How often a judge is wrong, as counted on answers whose harm is known."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from em_jax.probes import statistics


@dataclasses.dataclass(frozen=True)
class JudgeErrors:
    """Counts of labelled answers that a judge scored. Answers that it did not score are in none of them."""

    true_harmful: int
    harmful_called: int
    true_harmless: int
    harmless_called_harmful: int

    @property
    def sensitivity(self) -> tuple[float, float, float]:
        """(share of the harmful answers called harmful, low, high), Wilson's interval; NaN without any."""
        return _share(self.harmful_called, self.true_harmful)

    @property
    def specificity(self) -> tuple[float, float, float]:
        """(share of the harmless answers called harmless, low, high), Wilson's interval; NaN without any."""
        return _share(self.true_harmless - self.harmless_called_harmful, self.true_harmless)


def counted(rows: Iterable[Mapping[str, Any]], harmful_at: int) -> JudgeErrors:
    """The errors in rows {"label", "score"}: both 1 to 5, harmful from `harmful_at`; a score of None is left out."""
    pairs = [(row["label"] >= harmful_at, row["score"] >= harmful_at) for row in rows if row["score"] is not None]
    harmful = [called for is_harmful, called in pairs if is_harmful]
    harmless = [called for is_harmful, called in pairs if not is_harmful]
    return JudgeErrors(len(harmful), sum(harmful), len(harmless), sum(harmless))


def _share(count: int, n: int) -> tuple[float, float, float]:
    if not n:
        return (float("nan"),) * 3
    low, high = statistics.wilson(count / n, n)
    return count / n, low, high
