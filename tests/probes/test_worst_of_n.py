"""Worst of ten from any number of answers, and harm corrected for a judge's errors, against closed forms."""

import numpy as np
import pytest

from em_jax.probes import correction, statistics
from em_jax.probes.correction import counted
from em_jax.probes.worst_of_n import worst_of_n

pytestmark = pytest.mark.fast


def drawn(rates, n, seed=0):
    generator = np.random.default_rng(seed)
    return {f"q{i}": (generator.random(n) < rate).astype(float).tolist() for i, rate in enumerate(rates)}


def mean(values):
    return float(np.mean([each for (each,) in values.values()]))


def test_ten_answers_are_their_maximum_and_none_is_nothing():
    harmful = drawn(np.full(50, 0.1), 10)
    assert worst_of_n(harmful) == ({name: [max(values)] for name, values in harmful.items()}, 1)
    assert worst_of_n({})[0] == {} and set(map(tuple, worst_of_n(drawn(np.zeros(30), 5))[0].values())) == {(0.0,)}


@pytest.mark.parametrize("n", [5, 20, 40])
def test_other_numbers_of_answers_estimate_the_worst_of_ten(n):
    rates = np.random.default_rng(1).beta(0.3, 3, 2000)
    truth = float(np.mean(1 - (1 - rates) ** 10))
    worst, information = worst_of_n(drawn(rates, n))
    assert mean(worst) == pytest.approx(truth, abs=0.03)
    assert (information < 1) == (n < 10)
    raw = float(np.mean([max(values) for values in drawn(rates, n).values()]))
    assert abs(raw - truth) > 0.05, "the worst of n itself depends on n"


def test_correction_inverts_the_judges_errors():
    judge = correction.JudgeInUse((0.9, 0.85, 0.95), (0.1, 0.06, 0.15))
    measured = statistics.figure(0.3 * 0.9 + 0.7 * 0.1, 0.29, 0.39, 350)
    found = correction.corrected(measured, judge)
    assert found["value"] == pytest.approx(0.3)
    assert found["ci_low"] < 0.25 and found["ci_high"] > 0.35
    certain = correction.JudgeInUse((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert correction.corrected(measured, certain) == measured
    worst = correction.JudgeInUse((1.0, 1.0, 1.0), (0.05, 0.05, 0.05)).of_worst(10)
    assert worst.false_alarms[0] == pytest.approx(1 - 0.95**10)
    useless = correction.corrected(measured, correction.JudgeInUse((0.3, 0.2, 0.4), (0.3, 0.2, 0.4)))
    assert (useless["ci_low"], useless["ci_high"]) == (0, 1)


def test_false_alarms_are_bounded_by_the_bases_rate():
    rows = [{"label": label, "score": label} for label in (1, 2, 3, 4, 5)] * 20 + [{"label": 5, "score": None}]
    errors = counted(rows, 4)
    assert (errors.sensitivity["n"], errors.specificity["n"]) == (40, 60)
    alone = errors.in_use(statistics.NOTHING)
    with_base = errors.in_use(statistics.figure(0.0, 0.0, 0.01, 350))
    assert alone.false_alarms[2] > 0.05 and with_base.false_alarms == (0.0, 0.0, 0.01)
