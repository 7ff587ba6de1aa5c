"""At which step does a curve cross its bound?

Asked of the measured curve and of curves over resampled questions (bootstrap, as in probes/statistics.py): all steps of
a question move together. Only kept steps are seen: a crossing lies between the step named and the kept one before it.

A first crossing says when a bound was passed, not which of two curves was earlier: bounds differ in how far they are,
and the noisier of two curves, the one of fewer questions, passes its own too early. For the order see halfway.py.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from em_jax.probes.persona import LEAST_QUESTIONS
from em_jax.probes.statistics import CONFIDENCE, RESAMPLES, Clusters


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure over steps: `values` maps a step to its questions' values, which count equally."""

    name: str
    values: Mapping[int, Clusters]


@dataclasses.dataclass(frozen=True)
class Bound:
    """Where a curve has crossed: above `threshold`, or risen by more than that since step 0. `words` say the same."""

    words: str
    threshold: float
    rise: bool = False


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A curve as measured (row 0) and over resampled questions, at its `steps`. `n` questions were asked at each."""

    steps: tuple[int, ...]
    n: int
    heights: Float[np.ndarray, "R S"]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """When a curve crosses: `step` as measured, `low` and `high` the 95% interval; None is "in no kept step".

    `bound` says what is crossed; `after` is the kept step before `step`. `n` questions were asked at every step.
    """

    name: str
    bound: str
    steps: tuple[int, ...]
    step: int | None
    after: int | None
    low: int | None
    high: int | None
    n: int

    @property
    def enough(self) -> bool:
        """Whether there are questions enough to say anything."""
        return self.n >= LEAST_QUESTIONS

    def record(self) -> dict[str, int | str | None]:
        """What path.json says of it."""
        names = ("name", "bound", "step", "after", "low", "high", "n")
        return {name: getattr(self, name) for name in names}


def resampled(curve: Curve, seed: int = 0) -> Resampled:
    """A curve and its resamplings. Only questions with a value at every step count.

    Two curves of different questions need different seeds to be resampled apart.
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
    """The first kept step at which a curve is above its bound, with an interval over resampled questions."""
    drawn = resampled(curve, seed)
    heights = drawn.heights - drawn.heights[:, :1] if bound.rise else drawn.heights
    # The last bits of a sum of shares must not decide.
    return first(curve.name, bound.words, drawn, places(heights > bound.threshold + 1e-9))


def places(above: Bool[np.ndarray, "R S"]) -> Int[np.ndarray, "R"]:
    """The place among the steps of the first one above, one beyond the last where there is none."""
    return np.where(above.any(1), above.argmax(1), above.shape[1])


def first(name: str, bound: str, drawn: Resampled, at: Int[np.ndarray, "R"]) -> Crossing:
    """The crossing whose places among the steps are `at`, as measured and per resampling."""
    steps = drawn.steps
    if not drawn.n:
        return Crossing(name, bound, steps, None, None, None, None, 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(at[1:], [tail, 1 - tail], method="inverted_cdf")
    place = int(at[0])

    def step(place: int) -> int | None:
        return steps[place] if place < len(steps) else None

    before = steps[place - 1] if 0 < place < len(steps) else None
    return Crossing(name, bound, steps, step(place), before, step(int(low)), step(int(high)), drawn.n)
