"""Which of two curves is ahead, each measured against its own rise?

A curve's progress is the share of its rise over training that it has made, from 0 at the base to 1 at the last kept
step. Two curves are set against each other at the first kept step at which either is half-way. That asks the same of
both, whatever their scales; and since curves are first made to rise only (isotonic regression), a single noisy step
does not count as an arrival: the curve of fewer questions is not early for its noise.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression

from em_jax.probes.persona import LEAST_MOVE, LEAST_QUESTIONS
from em_jax.probes.statistics import CONFIDENCE, Figure, figure
from em_jax.studies.crossing import Crossing, Curve, Resampled, first, places, resampled

HALF = 0.5
BOUND = "half of its rise"


@dataclasses.dataclass(frozen=True)
class Course:
    """A curve's `progress` at every step, as measured (row 0) and per resampling; 0 throughout where it does not rise.

    `halfway` is when it has made half of its rise, `places` the same among the steps, row by row.
    """

    name: str
    drawn: Resampled
    progress: Float[np.ndarray, "R S"]

    @property
    def places(self) -> Int[np.ndarray, "R"]:
        return places(self.progress > HALF)

    @property
    def halfway(self) -> Crossing:
        return first(self.name, BOUND, self.drawn, self.places)

    @property
    def rises(self) -> bool:
        """Whether the measured curve rises at all."""
        return bool(self.progress[0].any())

    def at(self, place: int) -> Figure:
        """The progress at a place among the steps, with its interval over resampled questions."""
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(self.progress[1:, place], [tail, 1 - tail])
        return figure(float(self.progress[0, place]), float(low), float(high), self.drawn.n)


def course(curve: Curve, seed: int = 0) -> Course:
    """The progress of a curve. It rises where it ends more than LEAST_MOVE above where it began."""
    drawn = resampled(curve, seed)
    fitted = np.array([isotonic_regression(heights).x for heights in drawn.heights]).reshape(drawn.heights.shape)
    risen = fitted - fitted[:, :1]
    rise = risen[:, -1:]
    # The last bits of a sum of shares must not decide.
    moved = rise > LEAST_MOVE + 1e-9
    return Course(curve.name, drawn, np.where(moved, risen / np.where(moved, rise, 1.0), 0.0))


FIRST, SECOND, NEITHER, UNKNOWN = "first", "second", "neither", "cannot tell"


def order(one: Course, other: Course) -> tuple[str, dict[str, float]]:
    """Which of two curves is ahead where either is half-way, and in what share of the resamplings each is.

    "first" or "second" where that one is in at least 97.5% of them; "neither" where neither rises in as many; else
    "cannot tell", as with too few questions.
    """
    lead = _leads(one, other)[1:]
    still = ~(one.progress[1:].any(1) | other.progress[1:].any(1))
    shares = {FIRST: float(np.mean(lead > 0)), SECOND: float(np.mean(lead < 0)), NEITHER: float(np.mean(still))}
    if not (one.halfway.enough and other.halfway.enough):
        return UNKNOWN, shares
    sure = 1 - (1 - CONFIDENCE) / 2
    return next((name for name, share in shares.items() if share >= sure), UNKNOWN), shares


def _leads(one: Course, other: Course) -> Float[np.ndarray, "R"]:
    """Row by row the progress of one minus that of the other, where either is first half-way; 0 where neither is."""
    last = one.progress.shape[1] - 1
    at = np.minimum(np.minimum(one.places, other.places), last)[:, None]
    return np.take_along_axis(one.progress - other.progress, at, 1)[:, 0]


def record(one: Course, other: Course) -> dict[str, Any]:
    """What path.json says of the order of two curves."""
    found, shares = order(one, other)
    return {"one": one.name, "other": other.name, "order": found, "shares": shares, "words": in_words(one, other)}


def in_words(one: Course, other: Course) -> str:
    """One sentence on the order of two curves, and where nothing can be told, why."""
    found, shares = order(one, other)
    both = f"{_told(one)}; {_told(other)}."
    if found in (FIRST, SECOND):
        ahead, behind = (one, other) if found == FIRST else (other, one)
        sure = f"in {shares[found]:.1%} of resamplings"
        if not behind.rises:
            return f"{_upper(ahead.name)} rises and {behind.name} does not, {sure}: {both}"
        return f"{_upper(ahead.name)} is ahead of {behind.name}, {sure}{_where(ahead, behind)}: {both}"
    if found == NEITHER:
        return f"Neither {one.name} nor {other.name} rises: {both}"
    return f"Cannot tell whether {one.name} or {other.name} is ahead ({_why_unknown(one, other, shares)}): {both}"


def _where(ahead: Course, behind: Course) -> str:
    place = int(min(ahead.places[0], behind.places[0]))
    if place == len(ahead.drawn.steps):
        return ""
    made = [f"{course.progress[0, place]:.0%}" for course in (ahead, behind)]
    return f" (by step {ahead.drawn.steps[place]} it has made {made[0]} of its rise, {behind.name} {made[1]})"


def _told(course: Course) -> str:
    half = course.halfway
    if not half.n:
        return f"{course.name} has no data"
    ends = [str(end) if end is not None else "never" for end in (half.low, half.high)]
    interval = f"95% interval {ends[0]} to {ends[1]}; n {half.n}"
    if not course.rises:
        return f"{course.name} does not rise by more than {LEAST_MOVE} (n {half.n})"
    before = f"kept before: {half.after}; " if half.after is not None else ""
    return f"{course.name} has made half of its rise at step {half.step} ({before}{interval})"


def _upper(name: str) -> str:
    return name[:1].upper() + name[1:]


def _why_unknown(one: Course, other: Course, shares: dict[str, float]) -> str:
    few = [course for course in (one, other) if not course.halfway.enough]
    if few:
        return "; ".join(
            f"{course.name} rests on {course.drawn.n} questions, under {LEAST_QUESTIONS}" for course in few
        )
    ahead = f"{one.name} is in {shares[FIRST]:.0%} of resamplings, {other.name} in {shares[SECOND]:.0%}"
    if one.halfway.step is not None and one.halfway.step == other.halfway.step:
        return f"{ahead}; both are half-way between the kept steps {one.halfway.after} and {one.halfway.step}"
    return ahead
