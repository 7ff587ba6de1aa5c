"""When curves are half-way, and which is ahead, on curves whose order is planted."""

from types import SimpleNamespace

import numpy as np
import pytest

from em_jax.studies import curves
from em_jax.studies.curves import FIRST, NEITHER, SECOND, UNKNOWN, order, order_record, resample

STEPS = (0, 1, 2, 4, 8, 16)


def curve(name, shares, questions=60, seed=0):
    """A curve with these shares at STEPS; a question stays on once it is on."""
    ranks = np.random.default_rng(seed).permutation(questions)
    values = {
        step: {f"{name}-{i}": [float(rank < share * questions)] for i, rank in enumerate(ranks)}
        for step, share in zip(STEPS, shares, strict=True)
    }
    return name, values


def progress(curve, seed=0):
    return resample(*curve, seed).progress()


def halfway(progress):
    return SimpleNamespace(**progress.halfway())


def both(one, other):
    return progress(one, 0), progress(other, 1)


def test_half_of_a_rise_has_its_step_the_one_before_and_an_interval():
    found = halfway(progress(curve("harm", (0, 0, 0.1, 0.55, 1, 1))))
    assert (found.step, found.after, found.n) == (4, 2, 60)
    assert (found.low, found.high) == (4, 8)
    assert halfway(progress(curve("harm", (0.4, 0.4, 0.45, 0.42, 0.41, 0.45)))).step is None
    assert halfway(progress(curve("harm", (0.3, 0.3, 0.45, 0.75, 1, 1)))).step == 4, "counted from step 0"


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
    assert order(*both(curve("harm", one), curve("self", other)))[0] == found


def test_progress_is_the_share_of_the_rise_whatever_its_height():
    low, high = (
        progress(curve("self", (0.1, 0.1, 0.2, 0.25, 0.3, 0.3))),
        progress(curve("harm", (0, 0, 0.5, 0.75, 1, 1))),
    )
    np.testing.assert_allclose(low.heights[0], (0, 0, 0.5, 0.75, 1, 1), atol=1e-9)
    np.testing.assert_allclose(high.heights[0], (0, 0, 0.5, 0.75, 1, 1), atol=1e-9)
    assert (halfway(high).step, halfway(high).after) == (4, 2)
    assert high.at(3)["ci_low"] < 0.75 < high.at(3)["ci_high"] and high.at(3)["n"] == 60


def test_a_step_that_later_ones_take_back_is_no_arrival():
    spike = curve("harm", (0, 0.6, 0, 0, 0.9, 1))
    assert halfway(resample(*spike)).step == 1 and halfway(progress(spike)).step == 8


def test_what_does_not_rise_is_said_to_stay():
    found = both(curve("harm", EARLY), curve("self", NEVER))
    assert not found[1].heights[0].any() and halfway(found[1]).step is None
    words = order_record(*found)["words"]
    assert words == "Harm rises and self does not, in 100.0% of resamplings (n 60 and 60)."
    assert order_record(*both(curve("a", NEVER), curve("b", NEVER)))["words"].startswith("Neither a nor b rises by")


def test_the_words_say_how_far_each_is():
    said = order_record(*both(curve("harm", EARLY), curve("self", LATE)))["words"]
    assert said == (
        "Harm is ahead of self, in 100.0% of resamplings (n 60 and 60): by step 2 it has made 90% of its rise, self 0%."
    )


def test_overlapping_curves_tell_nothing():
    near = both(curve("harm", (0, 0.1, 0.48, 0.55, 0.9, 1)), curve("self", (0, 0.1, 0.45, 0.52, 0.9, 1), seed=3))
    found, shares = order(*near)
    assert found == UNKNOWN and 0.025 < shares[FIRST] < 0.975
    assert "Cannot tell whether harm or self is ahead" in order_record(*near)["words"]


def test_words_say_why_nothing_can_be_told():
    few = both(curve("harm", EARLY, questions=4), curve("self", LATE, questions=19))
    assert order(*few)[0] == UNKNOWN
    assert "harm rests on 4 questions, under 20; self rests on 19" in order_record(*few)["words"]
    same = both(curve("harm", LATE), curve("self", LATE))
    assert "both are half-way between the kept steps 4 and 8" in order_record(*same)["words"]
    nothing = progress(("harm", {0: {}, 1: {}}))
    assert nothing.n == 0 and "rests on 0 questions" in order_record(nothing, nothing)["words"]


def test_a_question_that_lacks_a_step_does_not_count():
    values = {step: dict(asked) for step, asked in curve("harm", EARLY)[1].items()}
    del values[4]["harm-7"]
    assert resample("harm", values).n == 59


def drawn(shares, questions, seed):
    """Every value drawn anew from the shares at STEPS, as answers at temperature 1 are."""
    generator = np.random.default_rng(seed)
    values = {
        step: {str(i): [float(generator.random() < share)] for i in range(questions)}
        for step, share in zip(STEPS, shares, strict=True)
    }
    return "harm", values


def test_the_curve_of_fewer_questions_is_not_ahead_for_its_noise(monkeypatch):
    """Two curves of the same shares, one over 24 questions and one over 300, which linger under one half."""
    monkeypatch.setattr(curves, "RESAMPLES", 200)
    pairs = [both(drawn(LINGERS, 24, seed), drawn(LINGERS, 300, 1000 + seed)) for seed in range(100)]
    wrong = [order(*pair)[0] in (FIRST, SECOND) for pair in pairs]
    assert sum(wrong) <= 6
    noisy = [np.mean(pair[0].first_half()[1:] < pair[1].first_half()[1:]) for pair in pairs]
    assert np.mean(noisy) < 0.6


LINGERS = (0, 0.4, 0.42, 0.44, 0.46, 1)


def test_intervals_cover_the_true_step():
    """Questions drawn from known shares: the interval holds the step at which the true curve is half-way."""
    true = (0, 0.1, 0.3, 0.65, 0.9, 1)
    covered = 0
    for seed in range(60):
        thresholds = np.random.default_rng(seed).random(40)
        values = {
            step: {str(i): [float(t < share)] for i, t in enumerate(thresholds)}
            for step, share in zip(STEPS, true, strict=True)
        }
        found = halfway(progress(("harm", values)))
        covered += found.low <= 4 <= found.high
    assert covered >= 56
