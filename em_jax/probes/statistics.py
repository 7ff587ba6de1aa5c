"""Figures with intervals that can be believed: they resample or count questions, never rows.

A figure is {"value", "ci_low", "ci_high", "n"}, n the number of questions; where nothing is defined it is all null
with n 0. Values come as clusters: question -> its values, which move together in every interval.

Shares have Wilson intervals with the clusters' effective n (Wilson 1927; effective n after Korn and Graubard 1998),
differences of shares combine the two Wilson intervals (Newcombe 1998, method 10), means, their differences and kappas
have a bootstrap over questions. A percentile bootstrap for shares covers only 79-88% near 0 and 1.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

Figure = dict[str, Any]
Clusters = Mapping[str, Sequence[float]]
Estimate = Callable[[Any], Figure]

NOTHING: Figure = {"value": None, "ci_low": None, "ci_high": None, "n": 0}
CONFIDENCE = 0.95
RESAMPLES = 2000
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
# How many questions of the rarer outcome weigh as much as the cautious belief that a question's samples all agree.
# At 1 the intervals cover 94-98.5% of simulated draws whatever the correlation within questions (the tests count it).
PRIOR_QUESTIONS = 1.0
# Under this many questions a bootstrap has too little to resample: the figure stands without an interval.
LEAST_FOR_BOOTSTRAP = 8


def figure(value: float, low: float | None, high: float | None, n: int) -> Figure:
    """One figure; undefined values make it NOTHING."""
    if n == 0 or not math.isfinite(value):
        return dict(NOTHING)
    return {"value": float(value), "ci_low": _plain(low), "ci_high": _plain(high), "n": int(n)}


def _plain(limit: float | None) -> float | None:
    return None if limit is None or not math.isfinite(limit) else float(limit)


def _means(clusters: Clusters) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Questions in a fixed order, each one's mean and number of values."""
    names = sorted(name for name, values in clusters.items() if len(values))
    means = np.array([sum(clusters[name]) / len(clusters[name]) for name in names], np.float64)
    sizes = np.array([len(clusters[name]) for name in names], np.float64)
    return names, means, sizes


def wilson(share_: float, n: float) -> tuple[float, float]:
    """Wilson's score interval for a share seen in n independent trials (n need not be whole)."""
    centre = (share_ + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share_ * (1 - share_) / n + Z**2 / (4 * n**2))
    return max(0.0, min(share_, centre - half)), min(1.0, max(share_, centre + half))


def effective_n(clusters: Clusters) -> float:
    """How many independent answers the clustered ones are worth, between the questions and the rows.

    The variance between questions gives the design effect. Near 0 and 1 it rests on a handful of questions, often on
    one, and would swing between extremes; it is therefore drawn towards the most cautious one (all samples of a
    question agree) by as much as the questions of the rarer outcome are few.
    """
    _, means, sizes = _means(clusters)
    questions = len(means)
    independent = questions**2 / float(np.sum(1 / sizes)) if questions else 0.0
    if questions < 2 or independent <= questions:
        return float(questions)
    share_ = means.mean()
    largest = independent / questions
    estimated = largest
    spread = means.var(ddof=1) / questions
    if 0 < share_ < 1:
        estimated = independent * spread / (share_ * (1 - share_))
    rarer = min(np.sum(means > 0), np.sum(means < 1))
    weight = rarer / (rarer + PRIOR_QUESTIONS)
    effect = weight * min(max(estimated, 1.0), largest) + (1 - weight) * largest
    return independent / effect


def share(clusters: Clusters) -> Figure:
    """The share of 1 among values between 0 and 1, every question weighing the same, with its Wilson interval."""
    names, means, _ = _means(clusters)
    if not names:
        return dict(NOTHING)
    value = float(means.mean())
    return figure(value, *wilson(value, effective_n(clusters)), len(names))


def mean(clusters: Clusters) -> Figure:
    """The mean of any values, every question weighing the same, with a bootstrap interval over questions."""
    names, means, _ = _means(clusters)
    return bootstrap(lambda weights: weights @ means / weights.sum(1), [len(names)])


def share_difference(base: Clusters, finetuned: Clusters) -> Figure:
    """finetuned - base over the questions both have, from the two Wilson intervals and the questions' correlation.

    A bootstrap of 30 questions that all changed sees no spread at all; this interval stays honest there.
    """
    common = sorted(set(_means(base)[0]) & set(_means(finetuned)[0]))
    if not common:
        return dict(NOTHING)
    before, after = ({name: clusters[name] for name in common} for clusters in (base, finetuned))
    one, other = share(after), share(before)
    correlation = _correlation(_means(after)[1], _means(before)[1])
    value = one["value"] - other["value"]
    low = value - _hypotenuse(one["value"] - one["ci_low"], other["ci_high"] - other["value"], correlation)
    high = value + _hypotenuse(one["ci_high"] - one["value"], other["value"] - other["ci_low"], correlation)
    return figure(value, max(-1.0, low), min(1.0, high), len(common))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _hypotenuse(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))


def mean_difference(base: Clusters, finetuned: Clusters) -> Figure:
    """finetuned - base over the questions both have, with a bootstrap of the questions' differences."""
    common = sorted(set(_means(base)[0]) & set(_means(finetuned)[0]))
    return mean({name: [float(np.mean(finetuned[name]) - np.mean(base[name]))] for name in common})


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], strata: Sequence[int], seed: int = 0) -> Figure:
    """A statistic and its percentile interval over resampled questions.

    `statistic` takes float[resamples, questions], how often each question was drawn, and gives float[resamples]; it is
    also called once with ones for the value itself. `strata` are the sizes of the groups within which questions are
    drawn, in the questions' order. Percentiles are widened for small samples (Hesterberg 2015, "expanded").
    """
    total = int(sum(strata))
    if not total:
        return dict(NOTHING)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(np.ones((1, total)))[0])
        # What each stratum's own mean takes away; strata of one question hold no spread to resample.
        freedom = total - sum(1 for size in strata if size)
        if freedom < LEAST_FOR_BOOTSTRAP - 1:
            return figure(value, None, None, total)
        generator = np.random.default_rng(seed)
        draws = np.concatenate(
            [generator.multinomial(size, np.full(size, 1 / size), RESAMPLES) for size in strata if size], axis=1
        )
        values = statistic(draws.astype(np.float64))
    values = values[np.isfinite(values)]
    if not math.isfinite(value) or not len(values):
        return dict(NOTHING)
    tail = float(stats.norm.cdf(-math.sqrt(total / freedom) * stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return figure(value, min(low, value), max(high, value), total)


def mean_of_means(groups: Mapping[Hashable, Mapping[Hashable, Clusters]]) -> Figure:
    """The unweighted mean over outer groups of the unweighted mean over inner groups of the questions' mean.

    The bootstrap draws questions within each inner group.
    """
    blocks = [
        (outer, _means(clusters)[1])
        for outer, inner in sorted(groups.items())
        for _, clusters in sorted(inner.items())
        if any(len(values) for values in clusters.values())
    ]
    outers = list(dict.fromkeys(outer for outer, _ in blocks))
    bounds = np.cumsum([0, *(len(means) for _, means in blocks)])

    def statistic(weights: np.ndarray) -> np.ndarray:
        parts = [
            weights[:, start:end] @ means / weights[:, start:end].sum(1)
            for (_, means), start, end in zip(blocks, bounds, bounds[1:])
        ]
        inner = [np.mean([part for part, (outer, _) in zip(parts, blocks) if outer == name], axis=0) for name in outers]
        return np.mean(inner, axis=0)

    return bootstrap(statistic, [len(means) for _, means in blocks])


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights of float[..., k, k] counts; NaN where it is undefined (constants).

    Source: Cohen 1968.
    """
    confusion = np.asarray(confusion, np.float64)
    size = confusion.shape[-1]
    scale = np.arange(size)
    weights = (scale[:, None] - scale[None, :]) ** 2 / (size - 1) ** 2
    total = confusion.sum((-2, -1))
    observed = (weights * confusion).sum((-2, -1)) / total
    expected = np.einsum("...i,...j,ij->...", confusion.sum(-1), confusion.sum(-2), weights) / total**2
    return np.where(expected > 1e-12, 1 - observed / np.where(expected > 1e-12, expected, 1.0), np.nan)


Pairs = Mapping[str, Sequence[tuple[int, int]]]


def kappa(pairs: Pairs, size: int = 5) -> Figure:
    """Quadratic weighted kappa of (predicted, actual) scores 1..size, clustered by question, bootstrap interval."""
    names, confusions = _confusions(pairs, size)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return quadratic_kappa((weights @ confusions).reshape(-1, size, size))

    return _unless_constant(bootstrap(statistic, [len(names)]), confusions, size)


def kappa_difference(base: Pairs, finetuned: Pairs, size: int = 5) -> Figure:
    """finetuned - base over the questions both have."""
    common = {name for name in base if base[name] and finetuned.get(name)}
    names, before = _confusions({name: base[name] for name in common}, size)
    _, after = _confusions({name: finetuned[name] for name in common}, size)

    def statistic(weights: np.ndarray) -> np.ndarray:
        first, second = (quadratic_kappa((weights @ found).reshape(-1, size, size)) for found in (before, after))
        return second - first

    found = bootstrap(statistic, [len(names)])
    return _unless_constant(_unless_constant(found, before, size), after, size)


def correlation(pairs: Pairs) -> Figure:
    """Pearson's correlation of (predicted, actual), with a bootstrap over questions; undefined for constants."""
    names, sums = _moments(pairs)
    return bootstrap(lambda weights: _pearson(weights @ sums), [len(names)])


def correlation_difference(base: Pairs, finetuned: Pairs) -> Figure:
    """finetuned - base over the questions both have."""
    common = {name for name in base if base[name] and finetuned.get(name)}
    names, before = _moments({name: base[name] for name in common})
    _, after = _moments({name: finetuned[name] for name in common})
    return bootstrap(lambda weights: _pearson(weights @ after) - _pearson(weights @ before), [len(names)])


def _moments(pairs: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[list[str], np.ndarray]:
    """Questions in a fixed order and float[questions, 6], each one's sums of 1, x, y, xx, yy, xy."""
    names = sorted(name for name, values in pairs.items() if len(values))
    sums = np.zeros((len(names), 6))
    for index, name in enumerate(names):
        for x, y in pairs[name]:
            sums[index] += (1, x, y, x * x, y * y, x * y)
    return names, sums


def _pearson(sums: np.ndarray) -> np.ndarray:
    """float[resamples, 6] sums -> float[resamples], NaN where a side is constant."""
    n, x, y, xx, yy, xy = sums.T
    spread = np.maximum(xx / n - (x / n) ** 2, 0) * np.maximum(yy / n - (y / n) ** 2, 0)
    return np.where(spread > 1e-12, (xy / n - x * y / n**2) / np.sqrt(np.where(spread > 1e-12, spread, 1.0)), np.nan)


def null_kappa(pairs: Pairs, size: int = 5, seed: int = 0) -> Figure:
    """What kappa comes to when predictions are dealt to the wrong answers: mean and 95% range of 2,000 shuffles."""
    names, confusions = _confusions(pairs, size)
    flat = np.array([pair for name in names for pair in pairs[name]], np.int64).reshape(-1, 2) - 1
    if _unless_constant({"n": 1}, confusions, size)["n"] == 0:
        return dict(NOTHING)
    generator = np.random.default_rng(seed)
    actual = generator.permuted(np.tile(flat[:, 1], (RESAMPLES, 1)), axis=1)
    cells = flat[None, :, 0] * size + actual
    counts = np.stack([(cells == cell).sum(1) for cell in range(size * size)], axis=1)
    values = quadratic_kappa(counts.reshape(-1, size, size))
    low, high = np.quantile(values, [0.025, 0.975])
    return figure(float(values.mean()), low, high, len(names))


def _confusions(pairs: Pairs, size: int) -> tuple[list[str], np.ndarray]:
    """Questions in a fixed order and float[questions, size * size], each one's confusion counts."""
    names = sorted(name for name, values in pairs.items() if len(values))
    confusions = np.zeros((len(names), size * size))
    for index, name in enumerate(names):
        for predicted, actual in pairs[name]:
            confusions[index, (predicted - 1) * size + actual - 1] += 1
    return names, confusions


def _unless_constant(found: Figure, confusions: np.ndarray, size: int) -> Figure:
    """`found`, or NOTHING where predictions or actual scores are all the same: such a kappa says nothing."""
    table = confusions.sum(0).reshape(size, size)
    constant = np.count_nonzero(table.sum(0)) < 2 or np.count_nonzero(table.sum(1)) < 2
    return dict(NOTHING) if constant else found


def compare(
    base: Any, finetuned: Any, extractors: Mapping[str, Callable[[Any], Any]], estimate: Estimate, difference=None
) -> dict[str, dict[str, Figure]]:
    """Per name the figure of the base, of the fine-tuned model, and of their paired difference.

    `extractors` turn a condition's rows into what `estimate` takes; a condition without rows has no data.
    """
    difference = difference or DIFFERENCES[estimate]
    found = {}
    for name, extract in extractors.items():
        before, after = extract(base), extract(finetuned)
        found[name] = {
            "base": estimate(before),
            "finetuned": estimate(after),
            "difference": difference(before, after),
        }
    return found


DIFFERENCES: dict[Estimate, Callable[[Any, Any], Figure]] = {
    share: share_difference,
    mean: mean_difference,
    kappa: kappa_difference,
    correlation: correlation_difference,
}
