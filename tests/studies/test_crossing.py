"""When curves cross, on curves whose order is planted."""

import numpy as np
import pytest

from em_jax.studies.crossing import FIRST, NEITHER, SECOND, UNKNOWN, Curve, crossing, in_words, order

pytestmark = pytest.mark.fast
STEPS = (0, 1, 2, 4, 8, 16)


def curve(name, shares, questions=60, threshold=0.5, rise=False, seed=0):
    """A curve with these shares at STEPS; a question stays on once it is on."""
    ranks = np.random.default_rng(seed).permutation(questions)
    values = {
        step: {f"{name}-{i}": [float(rank < share * questions)] for i, rank in enumerate(ranks)}
        for step, share in zip(STEPS, shares, strict=True)
    }
    return Curve(name, "it", threshold, rise, values)


def ordered(one, other):
    return order(crossing(one, 0), crossing(other, 1))


def test_a_crossing_has_its_step_the_one_before_and_an_interval():
    found = crossing(curve("harm", (0, 0, 0.1, 0.55, 1, 1)))
    assert (found.step, found.after, found.n) == (4, 2, 60)
    assert (found.low, found.high) == (4, 8)
    assert crossing(curve("harm", (0, 0, 0, 0, 0.2, 0.3))).step is None


def test_a_rise_is_counted_from_step_0():
    shares = (0.3, 0.3, 0.45, 0.55, 1, 1)
    assert crossing(curve("harm", shares, threshold=0.2, rise=True)).step == 4
    assert crossing(curve("harm", shares, threshold=0.2)).step == 0


EARLY, LATE, NEVER = (0, 0.1, 0.9, 1, 1, 1), (0, 0, 0, 0.05, 0.9, 1), (0, 0, 0.02, 0, 0.02, 0)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (EARLY, LATE, FIRST),
        (LATE, EARLY, SECOND),
        (EARLY, NEVER, FIRST),
        (NEVER, NEVER, NEITHER),
        (LATE, LATE, UNKNOWN),
    ],
)
def test_the_planted_order_is_found(one, other, found):
    assert ordered(curve("harm", one), curve("self", other))[0] == found


def test_overlapping_intervals_tell_nothing():
    near = curve("harm", (0, 0.1, 0.48, 0.55, 0.9, 1)), curve("self", (0, 0.1, 0.4, 0.52, 0.9, 1), seed=3)
    found, shares = ordered(*near)
    assert found == UNKNOWN and 0.02 < shares[FIRST] < 0.975
    assert "Cannot tell whether harm or self comes first" in in_words(crossing(near[0], 0), crossing(near[1], 1))


def test_words_say_why_nothing_can_be_told():
    few = crossing(curve("harm", EARLY, questions=4)), crossing(curve("self", LATE, questions=19))
    assert order(*few)[0] == UNKNOWN
    assert "harm rests on 4 questions, under 20; self rests on 19" in in_words(*few)
    same = crossing(curve("harm", LATE), 0), crossing(curve("self", LATE), 1)
    assert "both between the kept steps 4 and 8" in in_words(*same)
    nothing = crossing(Curve("harm", "it", 0.5, False, {0: {}, 1: {}}))
    assert nothing.n == 0 and "has no data" in in_words(nothing, nothing)


def test_a_question_that_lacks_a_step_does_not_count():
    whole = curve("harm", EARLY)
    missing = {step: dict(values) for step, values in whole.values.items()}
    del missing[4]["harm-7"]
    assert crossing(Curve("harm", "it", 0.5, False, missing)).n == 59


def test_intervals_cover_the_true_step():
    """Questions drawn from known shares: the interval holds the step at which the true curve crosses."""
    true = (0, 0.1, 0.3, 0.65, 0.9, 1)
    covered = 0
    for seed in range(60):
        thresholds = np.random.default_rng(seed).random(40)
        values = {
            step: {str(i): [float(t < share)] for i, t in enumerate(thresholds)}
            for step, share in zip(STEPS, true, strict=True)
        }
        found = crossing(Curve("harm", "it", 0.5, False, values))
        covered += found.low <= 4 <= found.high
    assert covered >= 56
