"""The label of several training seeds of one model, with its probability.

Unanimity would punish evidence: labels that are each right nine times in ten agree in 73% of threes and in 35% of tens.
So the figures are averaged and not the labels. One draw takes a weight for every seed (Bayesian bootstrap, Rubin 1981:
which seeds might have been trained), averages every figure and both its limits, and has the label of one run with these
figures. A label's probability is its share of the draws. The limits are averaged, not narrowed: all seeds are asked the
same questions, so that copies of one run have its label.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from em_jax.probes import persona
from em_jax.probes.statistics import NOTHING, Figure, figure
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import Figures, has_interval, known

DRAWS = 1000
SIGNED = ("_error_", "kappa", "correlation", "position_bias")
"""Parts of the names of figures whose mean may leave 0 to 1 though no seed's interval does."""


def over_seeds(runs: Sequence[Figures], subject: str = "finetuned", seed: int = 0) -> dict[str, Any]:
    """The verdict on the figures of one model's seeds.

    Returns {"label", "probabilities": label -> share of draws, most probable first, "figures": name -> mean over the
    seeds with a hierarchical interval}.

    The label is the most probable one where that is at least THRESHOLDS.likely, else mixed. A figure that a run lacks
    is averaged over the others.
    """
    generator = np.random.default_rng(seed)
    every = dict.fromkeys(name for run in runs for name in run)
    rules = [persona.rules(run, subject) for run in runs]
    # Of every label the conditions that it has for any of the runs.
    conditions = {label: list(dict.fromkeys(each for run in rules for each in run[label])) for label in rules[0]}
    weights = generator.dirichlet(np.ones(len(runs)), DRAWS)
    sides = ("base", "finetuned", "difference")
    averages = {
        name: {side: _averages([known(run, name, side) for run in runs], weights) for side in sides} for name in every
    }
    counts: Counter[str] = Counter()
    for draw in range(DRAWS):
        drawn = {
            name: {side: each[draw] if each else None for side, each in it.items()} for name, it in averages.items()
        }
        counts[persona.decide(drawn, conditions)] += 1
    probabilities = {label: count / DRAWS for label, count in sorted(counts.items(), key=lambda it: (-it[1], it[0]))}
    likeliest = next(iter(probabilities))
    label = likeliest if probabilities[likeliest] >= THRESHOLDS.likely else persona.MIXED
    means = {
        name: mean_over_seeds([known(run, name, subject) for run in runs], any(word in name for word in SIGNED))
        for name in every
    }
    return {"label": label, "probabilities": probabilities, "figures": means}


def _averages(figures: Sequence[Figure | None], weights: np.ndarray) -> list[Figure] | None:
    """The mean of a figure and of its limits for every draw, by float[draws, seeds]; None where no seed has it."""
    present = [(index, figure) for index, figure in enumerate(figures) if figure is not None]
    if not present:
        return None
    used = weights[:, [index for index, _ in present]]
    each = np.array([[one["value"], one["ci_low"], one["ci_high"]] for _, one in present], float)  # no limit: nan
    n = min(one["n"] for _, one in present)
    means = (used @ each / used.sum(1, keepdims=True)).tolist()
    return [figure(value, low, high, n) for value, low, high in means]


def mean_over_seeds(figures: Sequence[Figure | None], signed: bool = False) -> Figure:
    """The mean over seeds with a hierarchical interval: between seeds (Student's t) and over their common questions.

    Where no seed's interval leaves 0 to 1, as a share's cannot, neither does that of the mean; a `signed` figure's may.
    """
    known_figures = [each for each in figures if each is not None and each["value"] is not None]
    if not known_figures:
        return dict(NOTHING)
    values = np.array([each["value"] for each in known_figures])
    value, n = float(values.mean()), min(each["n"] for each in known_figures)
    if not all(has_interval(each) for each in known_figures):
        return figure(value, None, None, n)
    between = 0.0
    if len(values) > 1:
        freedom = len(values) - 1
        between = float(special.stdtrit(freedom, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
    low = np.mean([each["value"] - each["ci_low"] for each in known_figures])
    high = np.mean([each["ci_high"] - each["value"] for each in known_figures])
    limits = value - math.hypot(between, low), value + math.hypot(between, high)
    if not signed and all(0 <= each["ci_low"] <= each["ci_high"] <= 1 for each in known_figures):
        limits = max(0.0, limits[0]), min(1.0, limits[1])
    return figure(value, *limits, n)
