"""Curves over training steps: when each one crosses a bound, and which of two is ahead.

Both are computed for the measured curve and for curves over resampled questions (bootstrap, as in
probes/statistics.py): all steps of a question move together. Only kept steps are observed: a crossing lies between the
step reported and the kept one before it.

A first crossing does not say which of two curves was earlier: bounds differ in how far they are, and the curve of fewer
questions is noisier and passes its own too early. So the order is decided on progress, the share of its rise over
training that a curve has made, from 0 at the base to 1 at the last kept step, after a fit that may only rise (isotonic
regression). Two curves are compared at the first kept step at which either is half-way.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import isotonic_regression

from em_jax.probes.persona import LEAST_MOVE, LEAST_QUESTIONS
from em_jax.probes.statistics import CONFIDENCE, RESAMPLES, Clusters, Figure, figure

TAILS = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
# A sum of shares may differ in its last bits.
EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure over steps: `values` maps a step to its questions' values, which count equally."""

    name: str
    values: Mapping[int, Clusters]


@dataclasses.dataclass(frozen=True)
class Bound:
    """A curve crosses above `threshold`, or (`rise`) where it is that much above step 0. `words` say the same."""

    words: str
    threshold: float
    rise: bool = False


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A curve as measured (row 0) and over resampled questions, at its `steps`; `n` questions have every step."""

    steps: tuple[int, ...]
    n: int
    heights: Float[np.ndarray, "R S"]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """When a curve crosses `bound`: `step` as measured, `low` and `high` its 95% interval; None is "at no kept step".

    `after` is the kept step before `step`; `n` questions have every step.
    """

    name: str
    bound: str
    step: int | None
    after: int | None
    low: int | None
    high: int | None
    n: int


def resampled(curve: Curve, seed: int = 0) -> Resampled:
    """A curve and its resamplings, over the questions with a value at every step.

    Curves of different questions need different seeds, or their resamplings are correlated.
    """
    steps = tuple(sorted(curve.values))
    common = sorted(set.intersection(*(set(curve.values[step]) for step in steps))) if steps else []
    if not common:
        return Resampled(steps, 0, np.zeros((1 + RESAMPLES, len(steps))))
    table = np.array([[np.mean(curve.values[step][name]) for name in common] for step in steps], np.float64)
    count = len(common)
    draws = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), draws]) / count
    return Resampled(steps, count, weights @ table.T)


def crossing(curve: Curve, bound: Bound, seed: int = 0) -> Crossing:
    """The first kept step at which a curve is above its bound."""
    samples = resampled(curve, seed)
    heights = samples.heights - samples.heights[:, :1] if bound.rise else samples.heights
    return _crossing(curve.name, bound.words, samples, _first_true(heights > bound.threshold + EPSILON))


def _first_true(above: Bool[np.ndarray, "R S"]) -> Int[np.ndarray, "R"]:
    """The index of the first true step of each row, S where there is none."""
    return np.where(above.any(1), above.argmax(1), above.shape[1])


def _crossing(name: str, bound: str, samples: Resampled, indices: Int[np.ndarray, "R"]) -> Crossing:
    """The crossing at these step indices, as measured (the first) and per resampling."""
    if not samples.n:
        return Crossing(name, bound, None, None, None, None, 0)
    index = int(indices[0])
    low, high = np.quantile(indices[1:], TAILS, method="inverted_cdf")
    steps = (*samples.steps, None)
    before = steps[index - 1] if 0 < index < len(samples.steps) else None
    return Crossing(name, bound, steps[index], before, steps[int(low)], steps[int(high)], samples.n)


# --- progress, and which curve is ahead ---

FIRST, SECOND, NEITHER, UNKNOWN = "first", "second", "neither", "cannot tell"


@dataclasses.dataclass(frozen=True)
class Progress:
    """The share of its rise that a curve has made at each step, as measured (row 0) and per resampling; 0 throughout
    where it does not rise."""

    name: str
    samples: Resampled
    shares: Float[np.ndarray, "R S"]

    @property
    def half_indices(self) -> Int[np.ndarray, "R"]:
        """The index of the first step at which half of the rise is made, S where there is none."""
        return _first_true(self.shares > 0.5)

    @property
    def halfway(self) -> Crossing:
        return _crossing(self.name, "half of its rise", self.samples, self.half_indices)

    @property
    def rises(self) -> bool:
        """Whether the measured curve rises at all."""
        return bool(self.shares[0].any())

    def at(self, index: int) -> Figure:
        """The progress at a step's index, with its interval over resampled questions."""
        low, high = np.quantile(self.shares[1:, index], TAILS)
        return figure(float(self.shares[0, index]), float(low), float(high), self.samples.n)

    def sentence(self) -> str:
        """When half of the rise was made, without a full stop."""
        half = self.halfway
        if not half.n:
            return f"{self.name} has no data"
        if not self.rises:
            return f"{self.name} does not rise by more than {LEAST_MOVE} (n {half.n})"
        low, high = (step if step is not None else "never" for step in (half.low, half.high))
        before = f"kept before: {half.after}; " if half.after is not None else ""
        interval = f"95% interval {low} to {high}; n {half.n}"
        return f"{self.name} has made half of its rise at step {half.step} ({before}{interval})"


def progress(curve: Curve, seed: int = 0) -> Progress:
    """The progress of a curve. It rises where it ends more than LEAST_MOVE above where it began."""
    samples = resampled(curve, seed)
    fitted = np.array([isotonic_regression(row).x for row in samples.heights]).reshape(samples.heights.shape)
    risen = fitted - fitted[:, :1]
    rise = risen[:, -1:]
    moved = rise > LEAST_MOVE + EPSILON
    return Progress(curve.name, samples, np.where(moved, risen / np.where(moved, rise, 1.0), 0.0))


def order(one: Progress, other: Progress) -> tuple[str, dict[str, float]]:
    """Which of two curves is ahead where either is first half-way, and in what share of the resamplings.

    FIRST or SECOND where that one is ahead in at least 97.5% of them, NEITHER where neither rises in as many; else
    UNKNOWN, as with too few questions.
    """
    last = one.shares.shape[1] - 1
    index = np.minimum(np.minimum(one.half_indices, other.half_indices), last)[1:, None]
    lead = np.take_along_axis((one.shares - other.shares)[1:], index, 1)
    still = ~(one.shares[1:].any(1) | other.shares[1:].any(1))
    shares = {FIRST: float(np.mean(lead > 0)), SECOND: float(np.mean(lead < 0)), NEITHER: float(np.mean(still))}
    enough = min(one.samples.n, other.samples.n) >= LEAST_QUESTIONS
    sure = [name for name, share in shares.items() if enough and share >= TAILS[1]]
    return (sure[0] if sure else UNKNOWN), shares


def order_record(one: Progress, other: Progress) -> dict[str, Any]:
    """What path.json says of the order of two curves."""
    ahead, shares = order(one, other)
    return {"one": one.name, "other": other.name, "order": ahead, "shares": shares, "words": order_sentence(one, other)}


def order_sentence(one: Progress, other: Progress) -> str:
    """One sentence on which of two curves is ahead, and where that is unknown, why."""
    ahead, shares = order(one, other)
    if ahead == NEITHER:
        claim = f"Neither {one.name} nor {other.name} rises"
    elif ahead == UNKNOWN:
        claim = f"Cannot tell whether {one.name} or {other.name} is ahead ({_why_unknown(one, other, shares)})"
    else:
        leader, follower = (one, other) if ahead == FIRST else (other, one)
        name = leader.name[:1].upper() + leader.name[1:]
        claim = (
            f"{name} is ahead of {follower.name}" if follower.rises else f"{name} rises and {follower.name} does not"
        )
        claim += f"{'' if follower.rises else ' does not'}, in {shares[ahead]:.1%} of resamplings"
        index = int(min(leader.half_indices[0], follower.half_indices[0]))
        if follower.rises and index < len(leader.samples.steps):
            made, others = (f"{each.shares[0, index]:.0%}" for each in (leader, follower))
            step = leader.samples.steps[index]
            claim += f" (by step {step} it has made {made} of its rise, {follower.name} {others})"
    return f"{claim}: {one.sentence()}; {other.sentence()}."


def _why_unknown(one: Progress, other: Progress, shares: Mapping[str, float]) -> str:
    few = [each for each in (one, other) if each.samples.n < LEAST_QUESTIONS]
    if few:
        return "; ".join(f"{each.name} rests on {each.samples.n} questions, under {LEAST_QUESTIONS}" for each in few)
    ahead = f"{one.name} is in {shares[FIRST]:.0%} of resamplings, {other.name} in {shares[SECOND]:.0%}"
    half = one.halfway
    if half.step is not None and half.step == other.halfway.step:
        return f"{ahead}; both are half-way between the kept steps {half.after} and {half.step}"
    return ahead
