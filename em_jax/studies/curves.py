"""Curves over training steps: when each one is half-way, and which of two is ahead.

Both are computed for the measured curve and for curves over resampled questions (bootstrap, as in
probes/statistics.py): all steps of a question move together. Only kept steps are observed: a curve gets half-way
between the step reported and the kept one before it.

A bound that each has to cross would not say which of two curves was earlier: bounds differ in how far they are, and the
curve of fewer questions is noisier and passes its own too early. So the order is decided on progress, the share of its
rise over training that a curve has made, from 0 at the base to 1 at the last kept step, after a fit that may only rise
(isotonic regression). Two curves are compared at the first kept step at which either is half-way.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression

from em_jax.probes.statistics import CONFIDENCE, RESAMPLES, Clusters, Figure, figure
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.studies.sentences import LEAST_POINTS

TAILS = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]


HALF = 0.5
# A sum of shares may differ in its last bits.
MARGIN = 1e-9


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure as measured (row 0) and over resampled questions, at its `steps`; `n` questions have every step."""

    name: str
    steps: tuple[int, ...]
    n: int
    heights: Float[np.ndarray, "R S"]

    def first_half(self) -> Int[np.ndarray, "R"]:
        """The index of the first step at which a curve of progress is above one half, S where there is none."""
        above = self.heights > HALF
        return np.where(above.any(1), above.argmax(1), above.shape[1])

    def halfway(self) -> dict[str, Any]:
        """When a curve of progress is half-way: `step` as measured, `low` and `high` the 95% interval, `after` the kept
        step before. None is "at no kept step".
        """
        record: dict[str, Any] = {"name": self.name, "n": self.n}
        if not self.n:
            return record | dict.fromkeys(("step", "after", "low", "high"))
        indices, steps = self.first_half(), (*self.steps, None)
        index = int(indices[0])
        low, high = np.quantile(indices[1:], TAILS, method="inverted_cdf")
        before = steps[index - 1] if 0 < index < len(self.steps) else None
        return record | {"step": steps[index], "after": before, "low": steps[int(low)], "high": steps[int(high)]}

    def at(self, index: int) -> Figure:
        """The height at a step's index, with its interval over resampled questions."""
        low, high = np.quantile(self.heights[1:, index], TAILS)
        return figure(float(self.heights[0, index]), float(low), float(high), self.n)

    def progress(self) -> "Curve":
        """The curve's progress; 0 throughout where it ends at most THRESHOLDS.least_move above its start."""
        fitted = np.array([isotonic_regression(row).x for row in self.heights]).reshape(self.heights.shape)
        risen = fitted - fitted[:, :1]
        rise = risen[:, -1:]
        moved = rise > THRESHOLDS.least_move + MARGIN
        return dataclasses.replace(self, heights=np.where(moved, risen / np.where(moved, rise, 1.0), 0.0))


def resample(name: str, values: Mapping[int, Clusters], seed: int = 0) -> Curve:
    """The curve of a figure: `values` maps a step to its questions' values, which count equally.

    Curves of different questions need different seeds, or their resamplings are correlated.
    """
    steps = tuple(sorted(values))
    common = sorted(set.intersection(*(set(values[step]) for step in steps))) if steps else []
    if not common:
        return Curve(name, steps, 0, np.zeros((1 + RESAMPLES, len(steps))))
    table = np.array([[np.mean(values[step][question]) for question in common] for step in steps], np.float64)
    count = len(common)
    draws = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), draws]) / count
    return Curve(name, steps, count, weights @ table.T)


# --- which of two curves is ahead, by their progress ---

FIRST, SECOND, NEITHER, UNKNOWN = "first", "second", "neither", "cannot tell"


def order(one: Curve, other: Curve) -> tuple[str, dict[str, float]]:
    """Which of two curves of progress is ahead where either is first half-way, and in what share of the resamplings.

    FIRST or SECOND where that one is ahead in at least 97.5% of them, NEITHER where neither rises in as many; else
    UNKNOWN, as with too few questions.
    """
    last = one.heights.shape[1] - 1
    index = np.minimum(np.minimum(one.first_half(), other.first_half()), last)[1:, None]
    lead = np.take_along_axis((one.heights - other.heights)[1:], index, 1)
    still = ~(one.heights[1:].any(1) | other.heights[1:].any(1))
    shares = {FIRST: float(np.mean(lead > 0)), SECOND: float(np.mean(lead < 0)), NEITHER: float(np.mean(still))}
    enough = min(one.n, other.n) >= THRESHOLDS.least_questions
    sure = [name for name, share in shares.items() if enough and share >= TAILS[1]]
    return (sure[0] if sure else UNKNOWN), shares


def order_record(one: Curve, other: Curve) -> dict[str, Any]:
    """The content of path.json on which of two curves of progress is ahead, and where that is unknown, why."""
    ahead, shares = order(one, other)
    if ahead == NEITHER:
        claim = f"Neither {one.name} nor {other.name} rises by more than {LEAST_POINTS} (n {one.n} and {other.n})"
    elif ahead == UNKNOWN:
        claim = f"Cannot tell whether {one.name} or {other.name} is ahead ({_why_unknown(one, other, shares)})"
    else:
        leader, follower = (one, other) if ahead == FIRST else (other, one)
        name, rises = leader.name[:1].upper() + leader.name[1:], follower.heights[0].any()
        claim = f"{name} is ahead of {follower.name}" if rises else f"{name} rises and {follower.name} does not"
        claim += f", in {shares[ahead]:.1%} of resamplings (n {leader.n} and {follower.n})"
        index = int(min(leader.first_half()[0], follower.first_half()[0]))
        if rises and index < len(leader.steps):
            made, others = (f"{each.heights[0, index]:.0%}" for each in (leader, follower))
            claim += f": by step {leader.steps[index]} it has made {made} of its rise, {follower.name} {others}"
    return {"one": one.name, "other": other.name, "order": ahead, "shares": shares, "words": f"{claim}."}


def _why_unknown(one: Curve, other: Curve, shares: Mapping[str, float]) -> str:
    few = [each for each in (one, other) if each.n < THRESHOLDS.least_questions]
    if few:
        return "; ".join(f"{each.name} rests on {each.n} questions, under {THRESHOLDS.least_questions}" for each in few)
    ahead = f"{one.name} is in {shares[FIRST]:.0%} of resamplings, {other.name} in {shares[SECOND]:.0%}"
    half = one.halfway()
    if half["step"] is not None and half["step"] == other.halfway()["step"]:
        return f"{ahead}; both are half-way between the kept steps {half['after']} and {half['step']}"
    return ahead
