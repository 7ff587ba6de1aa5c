"""Figures with 95% intervals that resample or count questions, never rows.

A figure is {"value", "ci_low", "ci_high", "n"}, n the number of questions; an undefined figure is null with n 0.
Values come as clusters, question -> its values: intervals draw the values of a question together. Questions that share
a theme, a wording or a template are no independent evidence either: where such groups are given, an interval is widened
for the grouping that leaves the least information (`design_effect`).

Shares have Wilson intervals with the clusters' effective n (Wilson 1927; effective n after Korn and Graubard 1998).
Differences of shares combine the two Wilson intervals (Newcombe 1998, method 10). Means have the wider one of a
percentile and a studentized bootstrap over questions (Efron 1981), and no interval under LEAST_FOR_MEAN questions:
neither holds for skewed values then. Kappas, correlations and their differences have a percentile bootstrap; for shares
that would cover only 79-88% near 0 and 1.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

Figure = dict[str, Any]
Clusters = Mapping[str, Sequence[float]]
Pairs = Mapping[str, Sequence[tuple[float, float]]]
Groups = Sequence[Mapping[str, str]]
"""Groupings of the questions, each question -> its group; a question that a grouping does not name is its own group."""
Estimate = Callable[..., Figure]

NOTHING: Figure = {"value": None, "ci_low": None, "ci_high": None, "n": 0}
CONFIDENCE = 0.95
RESAMPLES = 2000
_TAIL = (1 - CONFIDENCE) / 2
Z = float(special.ndtri(0.5 + CONFIDENCE / 2))
# The weight, in questions of the rarer outcome, of the prior that all samples of a question agree.
# At 1 the intervals cover 94-98.5% of simulated draws whatever the correlation within questions (a test counts them).
PRIOR_QUESTIONS = 1.0
# The same for groups of questions: few questions of the rarer outcome do not show what a group has in common, so their
# design effect is shrunk towards that of a correlation of 0.2, with the weight of two such questions. The intervals
# then cover at least 93% of simulated draws at correlations up to 0.2 and rates of 0.02 to 0.97 (a test counts them);
# near 0 and 1, and where groups have nothing in common, up to 100%: rather too wide.
PRIOR_GROUP_CORRELATION, PRIOR_GROUPED_QUESTIONS = 0.2, 2.0
# Groups with unequal, skewed rates say less about their variance than normal ones: their degrees of freedom count less
# (Imbens and Kolesar 2016). With all of them the intervals cover 92% of draws at a rate of 0.1 in six groups.
FREEDOM_OF_GROUPS = 0.75
# With two groups Student's t multiplies the variance by 42 or more: a chance of one degree of freedom, no evidence.
LEAST_GROUPS = 4
# Under this many questions a bootstrap has too little to resample: the figure has no interval.
LEAST_FOR_BOOTSTRAP = 8
# Signed errors are often 0 but for a few large ones: a sample of ten misses those in a third of draws. From 30 on the
# intervals cover 97-99% of draws in which 10-30% of the errors are large (a test counts them); rarer ones are missed.
LEAST_FOR_MEAN = 30


def figure(value: float, low: float | None, high: float | None, n: int) -> Figure:
    """One figure; NOTHING where the value is undefined. A limit that is not finite becomes null."""
    if n == 0 or not math.isfinite(value):
        return dict(NOTHING)
    low, high = (None if limit is None or not math.isfinite(limit) else float(limit) for limit in (low, high))
    return {"value": float(value), "ci_low": low, "ci_high": high, "n": int(n)}


def _questions(*conditions: Mapping[str, Sequence]) -> list[str]:
    """The questions that have values in every condition, in a fixed order."""
    answered = ({name for name, values in clusters.items() if len(values)} for clusters in conditions)
    return sorted(set.intersection(*answered))


def _means(clusters: Clusters) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Questions in a fixed order, each one's mean and number of values."""
    names = _questions(clusters)
    means = np.array([sum(clusters[name]) / len(clusters[name]) for name in names], np.float64)
    sizes = np.array([len(clusters[name]) for name in names], np.float64)
    return names, means, sizes


def wilson(share_: float, n: float) -> tuple[float, float]:
    """Wilson's score interval for a share of n independent trials (n need not be an integer)."""
    centre = (share_ + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share_ * (1 - share_) / n + Z**2 / (4 * n**2))
    return max(0.0, min(share_, centre - half)), min(1.0, max(share_, centre + half))


def effective_n(clusters: Clusters) -> float:
    """The number of independent answers that carry as much information: from the number of questions to that of rows.

    The variance between questions gives the design effect. Near 0 and 1 few questions determine it, so it is shrunk
    towards the largest possible one (all samples of a question agree), the more so the fewer questions have the rarer
    outcome.
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


def design_effect(influence: Mapping[str, float], groups: Groups, rarer: float = math.inf) -> float:
    """By how much groups of questions raise the variance of an estimate, at least 1; the largest of all groupings.

    `influence` has each question's centred contribution to the estimate. A group's contributions are added up, so what
    its questions have in common counts once (Liang and Zeger 1986). With few groups the variance between them is itself
    uncertain: Student's t in place of the normal quantile, in the measure in which the effect exceeds 1 (all of it from
    2 on), so that questions without groups in common keep their interval. `rarer` is the number of questions with the
    rarer outcome of a share: where they are few, a prior correlation stands in for what they cannot show. Under
    LEAST_GROUPS groups cannot show how much groups vary: there the correlation is at most the prior one.
    """
    names = sorted(influence)
    values = np.array([influence[name] for name in names])
    alone = float(np.sum(values**2)) * len(names) / max(len(names) - 1, 1)
    weight = 1.0 if math.isinf(rarer) else rarer / (rarer + PRIOR_GROUPED_QUESTIONS)
    largest = 1.0
    for grouping in groups:
        members: dict[tuple[bool, str], list[float]] = {}
        for name, value in zip(names, values):
            group = (True, grouping[name]) if name in grouping else (False, name)
            members.setdefault(group, []).append(float(value))
        count = len(members)
        if count < 2 or count == len(names):
            continue
        effect = 1.0
        if alone > 0:
            effect = sum(sum(each) ** 2 for each in members.values()) * count / (count - 1) / alone
        if effect > 1:
            few = (float(special.stdtrit(FREEDOM_OF_GROUPS * (count - 1), 0.5 + CONFIDENCE / 2)) / Z) ** 2
            effect *= few ** min(1.0, effect - 1)
        size = sum(len(each) ** 2 for each in members.values()) / len(names)
        prior = 1 + (size - 1) * PRIOR_GROUP_CORRELATION
        if count < LEAST_GROUPS:
            effect = min(effect, prior)
        largest = max(largest, weight * effect + (1 - weight) * prior)
    return largest


def _mean_influence(names: Sequence[str], means: np.ndarray) -> dict[str, float]:
    return dict(zip(names, (means - means.mean()) / len(means), strict=True))


def share(clusters: Clusters, groups: Groups = (), information: float = 1.0) -> Figure:
    """The mean of values from 0 to 1, with equal weight for every question and a Wilson interval.

    `information` scales the effective n, for values that were themselves estimated from less than they stand for.
    """
    names, means, _ = _means(clusters)
    if not names:
        return dict(NOTHING)
    value = float(means.mean())
    rarer = len(names) * min(value, 1 - value)
    independent = effective_n(clusters) * information / design_effect(_mean_influence(names, means), groups, rarer)
    return figure(value, *wilson(value, max(independent, 1.0)), len(names))


def mean(clusters: Clusters, groups: Groups = (), most: float = math.inf) -> Figure:
    """The mean of values from -`most` to `most`, every question with equal weight; a bootstrap over questions."""
    names, means, _ = _means(clusters)
    if len(names) < LEAST_FOR_MEAN:
        return figure(float(means.mean()), None, None, len(names)) if names else dict(NOTHING)
    n, value, own = len(names), float(means.mean()), float(means.std())
    if own == 0:
        return figure(value, value, value, n)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    drawn = draws @ means / n
    low, high = np.quantile(drawn, [_expanded_tail(n, n - 1), 1 - _expanded_tail(n, n - 1)])
    spread = np.sqrt(np.maximum(draws @ means**2 / n - drawn**2, 0.0))
    varied = spread > 1e-9 * own
    lower, upper = np.quantile((drawn[varied] - value) / spread[varied], [_TAIL, 1 - _TAIL])
    low, high = min(low, value - upper * own), max(high, value - lower * own)
    wider = math.sqrt(design_effect(_mean_influence(names, means), groups))
    low, high = value - wider * (value - low), value + wider * (high - value)
    return figure(value, max(-most, low), min(most, high), len(names))


def _expanded_tail(n: int, freedom: int) -> float:
    """The percentile to cut off, widened for small samples (Hesterberg 2015, "expanded")."""
    return float(special.ndtr(-math.sqrt(n / freedom) * special.stdtrit(freedom, 1 - _TAIL)))


def share_difference(
    base: Clusters, finetuned: Clusters, groups: Groups = (), information: tuple[float, float] = (1.0, 1.0)
) -> Figure:
    """finetuned - base over the questions both have, from the two Wilson intervals and the questions' correlation.

    Unlike a bootstrap, it has a positive width even where all questions changed alike. `information` is of the base and
    of the fine-tuned model.
    """
    common = _questions(base, finetuned)
    if not common:
        return dict(NOTHING)
    before, after = ({name: clusters[name] for name in common} for clusters in (base, finetuned))
    one, other = share(after, groups, information[1]), share(before, groups, information[0])
    means = np.array([_means(after)[1], _means(before)[1]])
    correlated = len(common) > 1 and means.std(1).all()
    correlation = float(np.corrcoef(means)[0, 1]) if correlated else 0.0
    return difference_of(one, other, correlation, len(common))


def difference_of(after: Figure, before: Figure, correlation: float, n: int) -> Figure:
    """after - before of two shares with intervals, by the distances of their limits (Newcombe 1998, method 10)."""

    def width(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))

    value = after["value"] - before["value"]
    low = value - width(after["value"] - after["ci_low"], before["ci_high"] - before["value"])
    high = value + width(after["ci_high"] - after["value"], before["value"] - before["ci_low"])
    return figure(value, max(-1.0, low), min(1.0, high), n)


def mean_difference(base: Clusters, finetuned: Clusters, groups: Groups = (), most: float = math.inf) -> Figure:
    """finetuned - base over the questions both have, with a bootstrap of the questions' differences."""
    common = _questions(base, finetuned)
    return mean({name: [float(np.mean(finetuned[name]) - np.mean(base[name]))] for name in common}, groups, 2 * most)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], strata: Sequence[int]) -> Figure:
    """A statistic and its percentile interval over resampled questions.

    `statistic` takes float[resamples, questions], how often each question was drawn, and returns float[resamples]; for
    the value itself every question counts once. `strata` are the sizes of consecutive groups of questions; each group
    is resampled by itself. Percentiles are widened for small samples.
    """
    total = int(sum(strata))
    if not total:
        return dict(NOTHING)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(np.ones((1, total)))[0])
        # Each stratum's mean takes one degree of freedom: a stratum of one question has no spread to resample.
        freedom = total - len(strata)
        if freedom < LEAST_FOR_BOOTSTRAP - 1:
            return figure(value, None, None, total)
        generator = np.random.default_rng(0)
        draws = [generator.multinomial(size, np.full(size, 1 / size), RESAMPLES) for size in strata]
        values = statistic(np.concatenate(draws, axis=1).astype(np.float64))
    values = values[np.isfinite(values)]
    if not math.isfinite(value) or not len(values):
        return dict(NOTHING)
    tail = _expanded_tail(total, freedom)
    low, high = np.quantile(values, [tail, 1 - tail])
    return figure(value, min(low, value), max(high, value), total)


def mean_of_means(values: Mapping[tuple[str, str, str], float], groups: Groups = (), *, lowest: float = 0.0) -> Figure:
    """The mean over outer groups of the mean over inner groups of the questions' mean, each unweighted.

    `values`, from `lowest` to 1, are keyed by (outer group, inner group, question). The bootstrap draws questions
    within each inner group.
    """
    names = sorted(values)
    inner_sizes = Counter(name[:2] for name in names)
    inner_groups = Counter(outer for outer, _ in inner_sizes)
    sizes = [*inner_sizes.values()]
    shares = np.array([1 / inner_groups[outer] for outer, _ in inner_sizes])
    flat, starts = np.array([values[name] for name in names]), np.cumsum([0, *sizes[:-1]])

    def means(weights: np.ndarray) -> np.ndarray:
        """float[resamples, inner groups], by how often each question was drawn."""
        return np.add.reduceat(weights * flat, starts, axis=1) / np.add.reduceat(weights, starts, axis=1)

    percentile = bootstrap(lambda weights: means(weights) @ shares / len(inner_groups), sizes)
    if not groups or percentile["ci_low"] is None:
        return percentile
    centred = flat - np.repeat(means(np.ones((1, len(flat))))[0], sizes)
    influence = centred * np.repeat(shares / sizes / len(inner_groups), sizes)
    wider = math.sqrt(design_effect(dict(zip((name[2] for name in names), influence, strict=True)), groups))
    value, low, high = (percentile[name] for name in ("value", "ci_low", "ci_high"))
    low, high = max(lowest, value - wider * (value - low)), min(1.0, value + wider * (high - value))
    return percentile | {"ci_low": low, "ci_high": high}


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


def kappa(*conditions: Pairs, size: int = 5) -> Figure:
    """Quadratic weighted kappa of (predicted, actual) scores 1..size, with a bootstrap over questions.

    Of two conditions it is the second's minus the first's, over the questions both have. Undefined where all
    predictions or all actual scores are the same.
    """
    tables = _tables(conditions, lambda pairs: _confusion(pairs, size))
    if any(_is_constant(confusions, size) for confusions in tables):
        return dict(NOTHING)
    return _bootstrap_tables(tables, lambda sums: quadratic_kappa(sums.reshape(-1, size, size)))


def correlation(*conditions: Pairs) -> Figure:
    """Pearson's correlation of (predicted, actual), otherwise like `kappa`."""
    return _bootstrap_tables(_tables(conditions, _moments), _pearson)


def _tables(conditions: Sequence[Pairs], row_of: Callable[[Sequence], np.ndarray]) -> list[np.ndarray]:
    """Per condition float[questions, sums]: `row_of` the pairs of each question that all conditions have."""
    names = _questions(*conditions)
    return [np.array([row_of(pairs[name]) for name in names]) for pairs in conditions]


def _bootstrap_tables(tables: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]) -> Figure:
    """The statistic of one condition's sums, or of the second's minus the first's.

    `statistic` takes float[resamples, sums] and returns float[resamples].
    """

    def of_weights(weights: np.ndarray) -> np.ndarray:
        first, *second = (statistic(weights @ table) for table in tables)
        return second[0] - first if second else first

    return bootstrap(of_weights, [len(tables[0])])


def _confusion(pairs: Sequence[tuple[int, int]], size: int) -> np.ndarray:
    """float[size * size] counts of (predicted, actual) scores 1..size."""
    cells = [(predicted - 1) * size + actual - 1 for predicted, actual in pairs]
    return np.bincount(cells, minlength=size * size).astype(np.float64)


def _is_constant(confusions: np.ndarray, size: int) -> bool:
    """Whether all predictions or all actual scores of float[questions, size * size] are the same."""
    table = confusions.sum(0).reshape(size, size) if len(confusions) else np.zeros((size, size))
    return bool(min(np.count_nonzero(table.sum(0)), np.count_nonzero(table.sum(1))) < 2)


def _moments(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """float[6]: the sums of 1, x, y, xx, yy, xy."""
    return np.array([(1, x, y, x * x, y * y, x * y) for x, y in pairs], np.float64).sum(0)


def _pearson(sums: np.ndarray) -> np.ndarray:
    """float[resamples, 6] sums -> float[resamples], NaN where a side is constant."""
    n, x, y, xx, yy, xy = sums.T
    spread = np.maximum(xx / n - (x / n) ** 2, 0) * np.maximum(yy / n - (y / n) ** 2, 0)
    return np.where(spread > 1e-12, (xy / n - x * y / n**2) / np.sqrt(np.where(spread > 1e-12, spread, 1.0)), np.nan)


def null_kappa(pairs: Pairs, size: int = 5) -> Figure:
    """The kappa of predictions shuffled among the answers: mean and 95% range of 2,000 shuffles."""
    names = _questions(pairs)
    [confusions] = _tables([pairs], lambda answered: _confusion(answered, size))
    if _is_constant(confusions, size):
        return dict(NOTHING)
    flat = np.array([pair for name in names for pair in pairs[name]], np.int64) - 1
    actual = np.random.default_rng(0).permuted(np.tile(flat[:, 1], (RESAMPLES, 1)), axis=1)
    cells = flat[None, :, 0] * size + actual
    counts = np.stack([(cells == cell).sum(1) for cell in range(size * size)], axis=1)
    values = quadratic_kappa(counts.reshape(-1, size, size))
    low, high = np.quantile(values, [0.025, 0.975])
    return figure(float(values.mean()), low, high, len(names))


def compare(
    base: Any,
    finetuned: Any,
    extractors: Mapping[str, Callable[[Any], Any]],
    estimate: Estimate,
    difference: Estimate | None = None,
    groups: Groups = (),
) -> dict[str, dict[str, Figure]]:
    """Per name the figure of the base, of the fine-tuned model, and of their difference paired by question.

    `extractors` turn a condition's rows into the argument of `estimate`; a condition without rows has no data. Where
    `groups` of questions are given, the intervals allow for them.
    """
    difference = difference or DIFFERENCES[estimate]
    more = {"groups": groups} if groups else {}
    figures = {}
    for name, extract in extractors.items():
        before, after = extract(base), extract(finetuned)
        figures[name] = {
            "base": estimate(before, **more),
            "finetuned": estimate(after, **more),
            "difference": difference(before, after, **more),
        }
    return figures


# The default of compare's `difference`.
DIFFERENCES: dict[Estimate, Estimate] = {
    share: share_difference,
    mean: mean_difference,
    kappa: kappa,
    correlation: correlation,
}
