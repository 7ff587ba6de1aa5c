"""At which step does a curve cross its threshold, and which of two curves does so first?

Both are asked of the measured curves and of curves over resampled questions (bootstrap, as in probes/statistics.py):
all steps of a question move together. Only kept steps are seen: a crossing lies between the step named and the kept one
before it, and two curves that cross between the same two kept steps cannot be told apart.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from em_jax.probes.persona import LEAST_QUESTIONS
from em_jax.probes.statistics import CONFIDENCE, RESAMPLES, Clusters


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure over steps. It has crossed where it lies above `threshold`, or rose by more than that since step 0.

    `values` maps a step to its questions' values, which count equally. `rise` says which of the two is meant, `bound`
    the same in words.
    """

    name: str
    bound: str
    threshold: float
    rise: bool
    values: Mapping[int, Clusters]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """When a curve crosses: `step` as measured, `low` and `high` the 95% interval; None is "in no kept step".

    `after` is the kept step before `step`. `n` questions were asked at every step. `draws` holds, per resampling, the
    place of the crossing among the steps, and one beyond the last where there is none.
    """

    name: str
    bound: str
    steps: tuple[int, ...]
    step: int | None
    after: int | None
    low: int | None
    high: int | None
    n: int
    draws: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def enough(self) -> bool:
        """Whether there are questions enough to say anything."""
        return self.n >= LEAST_QUESTIONS

    def record(self) -> dict[str, int | str | None]:
        """What path.json says of it."""
        names = ("name", "bound", "step", "after", "low", "high", "n")
        return {name: getattr(self, name) for name in names}


def crossing(curve: Curve, seed: int = 0) -> Crossing:
    """The first step above the threshold, with an interval over resampled questions.

    Only questions with a value at every step count. Two curves need different seeds to be resampled apart.
    """
    steps = tuple(sorted(curve.values))
    common = sorted(set.intersection(*(set(curve.values[step]) for step in steps))) if steps else []
    if not common:
        return Crossing(curve.name, curve.bound, steps, None, None, None, None, 0, np.full(RESAMPLES, len(steps)))
    table = np.array([[np.mean(curve.values[step][name]) for name in common] for step in steps], np.float64)
    count = len(common)
    draws = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), draws]) / count
    heights = weights @ table.T
    if curve.rise:
        heights = heights - heights[:, :1]
    # The last bits of a sum of shares must not decide.
    above = heights > curve.threshold + 1e-9
    places = np.where(above.any(1), above.argmax(1), len(steps))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(places[1:], [tail, 1 - tail], method="inverted_cdf")
    first = int(places[0])

    def at(place: int) -> int | None:
        return steps[place] if place < len(steps) else None

    before = steps[first - 1] if 0 < first < len(steps) else None
    return Crossing(curve.name, curve.bound, steps, at(first), before, at(int(low)), at(int(high)), count, places[1:])


FIRST, SECOND, NEITHER, UNKNOWN = "first", "second", "neither", "cannot tell"


def order(one: Crossing, other: Crossing) -> tuple[str, dict[str, float]]:
    """Which of two curves crosses first, and in what share of the resamplings each did.

    "first" or "second" where that one is ahead in at least 97.5% of them, a whole kept step; "neither" where neither
    ever crosses in as many; else "cannot tell", as with too few questions.
    """
    beyond = len(one.steps)
    shares = {
        FIRST: float(np.mean(one.draws < other.draws)),
        SECOND: float(np.mean(other.draws < one.draws)),
        NEITHER: float(np.mean((one.draws == beyond) & (other.draws == beyond))),
    }
    if not (one.enough and other.enough):
        return UNKNOWN, shares
    sure = 1 - (1 - CONFIDENCE) / 2
    return next((name for name, share in shares.items() if share >= sure), UNKNOWN), shares


def told(crossing: Crossing) -> str:
    """A crossing in words: "harm passes 0.2 above the base at step 16 (kept before: 8; 95% interval 8 to 16; n 64)"."""
    if not crossing.n:
        return f"{crossing.name} has no data"
    low, high = (str(end) if end is not None else "never" for end in (crossing.low, crossing.high))
    interval = f"{low} to {high}" if crossing.low is not None else "never"
    before = f"kept before: {crossing.after}; " if crossing.after is not None else ""
    where = f"at step {crossing.step}" if crossing.step is not None else f"in none of {crossing.steps[-1]} steps"
    return f"{crossing.name} passes {crossing.bound} {where} ({before}95% interval {interval}; n {crossing.n})"


def in_words(one: Crossing, other: Crossing) -> str:
    """One sentence on the order of two curves, and where nothing can be told, why."""
    found, shares = order(one, other)
    both = f"{told(one)}; {told(other)}."
    if found in (FIRST, SECOND):
        ahead, behind = (one, other) if found == FIRST else (other, one)
        comes = f"before {behind.name}" if behind.step is not None else f"and {behind.name} does not"
        return f"{_upper(ahead.name)} comes {comes}, in {shares[found]:.1%} of resamplings: {both}"
    if found == NEITHER:
        return f"Neither {one.name} nor {other.name} comes: {both}"
    return f"Cannot tell whether {one.name} or {other.name} comes first ({_why_unknown(one, other, shares)}): {both}"


def _upper(name: str) -> str:
    return name[:1].upper() + name[1:]


def _why_unknown(one: Crossing, other: Crossing, shares: Mapping[str, float]) -> str:
    few: Sequence[Crossing] = [item for item in (one, other) if not item.enough]
    if few:
        return "; ".join(f"{item.name} rests on {item.n} questions, under {LEAST_QUESTIONS}" for item in few)
    if one.step is not None and one.step == other.step:
        return f"both between the kept steps {one.after} and {one.step}: keep more of them"
    return f"{one.name} is first in {shares[FIRST]:.0%} of resamplings, {other.name} in {shares[SECOND]:.0%}"
