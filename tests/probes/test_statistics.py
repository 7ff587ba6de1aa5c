"""Intervals against known values, against simulated truth, and where nothing is defined."""

import itertools
import math

import numpy as np
import pytest

from em_jax.probes import score_prediction, statistics

QUESTIONS, RATES = (30, 150, 350), (0.05, 0.5, 0.88, 0.97)
NOTHING = {"value": None, "ci_low": None, "ci_high": None, "n": 0}


def simulated_coverage(questions, rate, samples, draws, correlation=0.3, seed=0):
    """The share of draws whose interval holds the true rate.

    The samples of a question share its own rate, drawn from a beta distribution whose spread gives the correlation.
    """
    generator = np.random.default_rng([seed, questions, int(rate * 100), samples, int(correlation * 100)])
    hits = 0
    for _ in range(draws):
        own = np.full(questions, rate)
        if samples > 1:
            strength = 1 / correlation - 1
            own = generator.beta(rate * strength, (1 - rate) * strength, questions)
        rows = (generator.random((questions, samples)) < own[:, None]).astype(float).tolist()
        found = statistics.share({f"q{index}": values for index, values in enumerate(rows)})
        hits += found["ci_low"] <= rate <= found["ci_high"]
    return hits / draws


@pytest.mark.long
@pytest.mark.parametrize("correlation", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("samples", [1, 10])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("questions", QUESTIONS)
def test_share_intervals_cover_the_truth(questions, rate, samples, correlation):
    if samples == 1 and correlation != 0.3:
        pytest.skip("one sample has nothing to be correlated with")
    coverage = simulated_coverage(questions, rate, samples, 2000, correlation)
    print(f"coverage {questions} questions, rate {rate}, {samples} samples, correlation {correlation}: {coverage:.4f}")
    assert coverage >= 0.93
    if 0.1 < rate < 0.9:
        assert coverage <= 0.98


@pytest.mark.fast
@pytest.mark.parametrize("questions, rate, samples", [(30, 0.97, 10), (150, 0.05, 10), (30, 0.5, 10), (30, 0.88, 1)])
def test_share_intervals_cover_the_truth_in_few_draws(questions, rate, samples):
    # 300 draws of a true 95% fall outside 0.91 to 0.995 about once in a thousand times.
    assert 0.91 <= simulated_coverage(questions, rate, samples, 300) <= 0.995


def grouped_coverage(questions, rate, groups, correlation, draws, seed=0):
    """The share of draws whose interval holds the true rate, where the questions of a group share a rate."""
    generator = np.random.default_rng([seed, questions, groups, int(100 * correlation)])
    names = [f"q{index}" for index in range(questions)]
    groupings = [{name: f"g{index % count}" for index, name in enumerate(names)} for count in (15, 6)]
    hits = 0
    for _ in range(draws):
        own = np.full(groups, rate)
        if correlation:
            strength = 1 / correlation - 1
            own = generator.beta(rate * strength, (1 - rate) * strength, groups)
        rows = generator.random(questions) < own[np.arange(questions) % groups]
        found = statistics.share({name: [float(hit)] for name, hit in zip(names, rows)}, groupings)
        hits += found["ci_low"] <= rate <= found["ci_high"]
    return hits / draws


@pytest.mark.long
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("groups", [6, 15])
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("questions", QUESTIONS)
def test_intervals_cover_the_truth_where_themes_or_wordings_share_a_rate(questions, rate, groups, correlation):
    coverage = grouped_coverage(questions, rate, groups, correlation, 2000)
    print(f"{questions} questions, rate {rate}, {groups} groups, correlation {correlation}: {coverage:.4f}")
    assert coverage >= 0.93
    # Near 0 and 1 the intervals may be too wide.
    if rate in (0.3, 0.5):
        assert coverage <= 0.98


@pytest.mark.fast
@pytest.mark.parametrize("groups, rate", [(6, 0.5), (15, 0.5), (6, 0.97)])
def test_intervals_allow_for_groups_of_questions_in_few_draws(groups, rate):
    # At 0.97 without the prior correlation they cover 78% of draws.
    assert grouped_coverage(150, rate, groups, 0.2, 100) >= 0.88


@pytest.mark.fast
def test_groups_widen_an_interval_only_where_their_questions_agree():
    names = [f"q{index}" for index in range(60)]
    groups = [{name: f"g{index // 10}" for index, name in enumerate(names)}]
    alike = {name: [float(index < 30)] for index, name in enumerate(names)}
    apart = {name: [float(index % 2)] for index, name in enumerate(names)}
    assert statistics.share(apart, groups) == statistics.share(apart)
    wide, plain = statistics.share(alike, groups), statistics.share(alike)
    assert wide["ci_high"] - wide["ci_low"] > 2 * (plain["ci_high"] - plain["ci_low"])
    assert statistics.share(alike, [{}]) == plain
    assert statistics.mean(alike, groups)["ci_low"] < statistics.mean(alike)["ci_low"]


@pytest.mark.fast
def test_a_mean_of_few_questions_has_no_interval():
    rare = {f"q{index}": [-3.5 * (index == 0)] for index in range(29)}
    assert statistics.mean(rare)["ci_low"] is None and statistics.mean(rare)["n"] == 29
    more = statistics.mean(rare | {"r": [0.0]})
    assert more["ci_low"] < more["value"] < more["ci_high"]


@pytest.mark.fast
@pytest.mark.parametrize(
    "hits, n, low, high",
    # Wilson's limits as R's prop.test(correct = FALSE) gives them.
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (81, 263, 0.25529, 0.36621), (10, 10, 0.72247, 1.0)],
)
def test_one_row_per_question_is_plain_wilson(hits, n, low, high):
    found = statistics.share({f"q{i}": [float(i < hits)] for i in range(n)})
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert found["n"] == n


@pytest.mark.fast
def test_effective_n_lies_between_questions_and_rows():
    alike = {f"q{i}": [float(i % 3 == 0)] * 10 for i in range(60)}
    generator = np.random.default_rng(0)
    apart = {f"q{i}": generator.integers(0, 2, 10).astype(float).tolist() for i in range(60)}
    never = {f"q{i}": [0.0] * 10 for i in range(60)}
    assert statistics.effective_n(alike) == pytest.approx(60, rel=0.02)
    assert 400 < statistics.effective_n(apart) <= 600
    assert statistics.effective_n(never) == 60, "ten answers alike are one piece of evidence"
    assert statistics.share(never)["value"] == 0 and statistics.share(never)["ci_high"] > 0.05


@pytest.mark.fast
def test_repeating_every_row_narrows_nothing():
    generator = np.random.default_rng(1)
    once = {f"q{i}": [float(generator.random() < 0.3)] for i in range(80)}
    often = {name: values * 10 for name, values in once.items()}
    one, ten = statistics.share(once), statistics.share(often)
    assert ten["ci_high"] - ten["ci_low"] >= 0.99 * (one["ci_high"] - one["ci_low"])
    assert statistics.mean(once) == statistics.mean(often)


@pytest.mark.fast
@pytest.mark.parametrize(
    "estimate", [statistics.share, statistics.mean, statistics.kappa, statistics.null_kappa, statistics.mean_of_means]
)
def test_no_data_is_null_and_never_zero(estimate):
    assert estimate({}) == NOTHING


@pytest.mark.fast
def test_differences_are_paired_by_question():
    base = {f"q{i}": [0.0] for i in range(40)}
    after = {f"q{i}": [1.0] for i in range(10, 60)}
    found = statistics.share_difference(base, after)
    assert found["value"] == 1 and found["n"] == 30
    assert found["ci_low"] < 0.9, "thirty questions that all changed are not certainty"
    assert statistics.share_difference(base, {"other": [1.0]}) == NOTHING
    noisy = {f"q{i}": [float(i)] for i in range(40)}
    shifted = {name: [values[0] + 0.5] for name, values in noisy.items()}
    moved = statistics.mean_difference(noisy, shifted)
    assert moved["value"] == moved["ci_low"] == moved["ci_high"] == 0.5, "what differs between questions cancels"


def test_mean_intervals_cover_the_truth():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        found = statistics.mean({f"q{i}": [value] for i, value in enumerate(generator.beta(0.5, 1.5, 30))})
        hits += found["ci_low"] <= 0.25 <= found["ci_high"]
    assert 0.90 <= hits / 300 <= 0.99


@pytest.mark.parametrize("large", [0.1, 0.3])
def test_mean_intervals_cover_signed_errors_that_are_mostly_small(large):
    """The value of LEAST_FOR_MEAN: errors of about 0.05, and of -3 in the share `large` of questions."""
    generator, hits, questions = np.random.default_rng(0), 0, statistics.LEAST_FOR_MEAN
    for _ in range(250):
        errors = np.where(generator.random(questions) < large, -3.0, 0.0) + generator.normal(0.05, 0.1, questions)
        found = statistics.mean({f"q{index}": [error] for index, error in enumerate(errors)})
        hits += found["ci_low"] <= 0.05 - 3 * large <= found["ci_high"]
    print(f"coverage of means, {large} large: {hits / 250:.3f}")
    assert 0.93 <= hits / 250 <= 0.995


@pytest.mark.fast
def test_an_interval_of_errors_holds_no_impossible_error():
    """One large error in 64: resamples without it hardly vary, and the page said "0.03 [0.00, 7.09]"."""
    rows = [
        {"sample": 0, "format": "shown", "question": f"q{i}", "value": 3.0 if i == 0 else 1.0 + i * 1e-5}
        | {"actual": {"low": 1}, "logprobs": dict.fromkeys("12345", 0.0)}
        for i in range(64)
    ]
    errors = {"error": lambda rows: score_prediction.errors_of(rows, "shown", "low")}
    found = statistics.compare(rows, rows[1:], errors, *score_prediction.OF_ERRORS)["error"]
    assert found["base"]["ci_high"] == 4.0 and found["base"]["ci_low"] >= -4.0
    assert statistics.mean(errors["error"](rows))["ci_high"] > 4.0, "what the limit is there for"


@pytest.mark.fast
def test_share_differences_cover_the_truth():
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        before, after = generator.random(60) < 0.05, generator.random(60) < 0.9
        clusters = [{f"q{i}": [float(hit)] for i, hit in enumerate(found)} for found in (before, after)]
        found = statistics.share_difference(*clusters)
        hits += found["ci_low"] <= 0.85 <= found["ci_high"]
    assert hits / 300 >= 0.91


@pytest.mark.fast
def test_kappa_agrees_with_the_definition():
    generator = np.random.default_rng(4)
    actual = generator.integers(1, 6, 50)
    predicted = np.clip(actual + generator.integers(-1, 2, 50), 1, 5)
    pairs = {f"q{i}": [(int(p), int(a))] for i, (p, a) in enumerate(zip(predicted, actual))}
    observed = np.mean((predicted - actual) ** 2)
    chance = np.mean((predicted[:, None] - actual[None, :]) ** 2)
    found = statistics.kappa(pairs)
    assert found["value"] == pytest.approx(1 - observed / chance)
    assert found["ci_low"] < found["value"] < found["ci_high"] <= 1
    null = statistics.null_kappa(pairs)
    assert abs(null["value"]) < 0.02 and null["ci_low"] < 0 < null["ci_high"]
    assert found["ci_low"] > null["ci_high"]
    assert statistics.kappa(pairs, pairs)["value"] == 0
    together = statistics.correlation(pairs)
    assert together["value"] == pytest.approx(np.corrcoef(predicted, actual)[0, 1])
    assert together["ci_low"] < together["value"] < together["ci_high"] < 1


@pytest.mark.fast
@pytest.mark.parametrize("pairs", [[(3, 1), (3, 5)], [(1, 4), (5, 4)], [(2, 2), (2, 2)]])
def test_a_kappa_of_constants_is_undefined(pairs):
    clusters = {f"q{i}": [pair] for i, pair in enumerate(pairs * 10)}
    assert statistics.kappa(clusters) == NOTHING
    assert statistics.null_kappa(clusters) == NOTHING
    assert statistics.correlation(clusters) == statistics.correlation(clusters, clusters) == NOTHING
    assert statistics.kappa(clusters, clusters) == NOTHING


@pytest.mark.fast
def test_mean_of_means_weighs_groups_and_not_questions():
    values = {("a", "x", f"q{i}"): 0.0 for i in range(90)} | {("a", "y", "r"): 1.0}
    values |= {("b", "x", f"s{i}"): 1.0 for i in range(3)}
    found = statistics.mean_of_means(values)
    assert found["value"] == pytest.approx((0.5 + 1) / 2)
    assert found["n"] == 94


def test_means_over_many_small_groups_cover_the_truth():
    generator = np.random.default_rng(6)
    hits = 0
    for _ in range(300):
        values = generator.normal(size=(6, 4, 5))
        names = itertools.product(range(6), range(4), range(5))
        found = statistics.mean_of_means({name: values[name] for name in names})
        hits += found["ci_low"] <= 0 <= found["ci_high"]
    assert 0.91 <= hits / 300 <= 0.99, hits / 300


@pytest.mark.fast
def test_groups_of_one_question_have_no_interval():
    values = {(outer, "x", f"q{outer}"): float(outer % 2) for outer in range(12)}
    assert statistics.mean_of_means(values) == {"value": 0.5, "ci_low": None, "ci_high": None, "n": 12}


@pytest.mark.fast
def test_few_questions_have_no_bootstrap_interval():
    found = statistics.mean({"a": [0.1], "b": [0.9]})
    assert found == {"value": 0.5, "ci_low": None, "ci_high": None, "n": 2}
    assert all(math.isfinite(limit) for limit in statistics.wilson(1.0, 2))


@pytest.mark.fast
def test_the_order_of_questions_does_not_reach_the_interval():
    generator = np.random.default_rng(5)
    values = {f"q{i}": [float(value)] for i, value in enumerate(generator.normal(size=50))}
    assert statistics.mean(values) == statistics.mean(dict(reversed(values.items())))


def test_two_groups_cannot_show_how_much_groups_vary():
    """Two wordings, of 64 questions two with the rarer outcome, by chance under the same wording."""
    questions = {f"q{number}": [float(number > 2)] for number in range(1, 65)}
    wordings = {name: str(int(name[1:]) % 32 == 0 or int(name[1:]) > 32) for name in questions}
    found = statistics.share(questions, [wordings])
    assert found["value"] == 62 / 64
    assert found["ci_low"] > 0.6, "with Student's t for one degree of freedom it would be 0.24"
    assert found["ci_low"] < statistics.share(questions)["ci_low"], "yet wider than without groups"
