"""The label of several training seeds of one model, with its probability.

Unanimity would punish evidence: labels that are each right nine times in ten agree in 73% of threes and in 35% of tens.
So the figures are averaged and not the labels. One draw takes a weight for every seed (Bayesian bootstrap, Rubin 1981:
which seeds might have been trained) and a deviation for every figure within its interval (which questions might have
been asked; it is the same for all seeds, as their questions are), and has the label of the averages. What must not be
shown (a rise of harm, a base that harms) is about intervals: there the seeds' lower limits are averaged. A label's
probability is its share of the draws.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from em_jax.probes import persona
from em_jax.probes.cautions import HARM
from em_jax.probes.statistics import NOTHING, Figure, Z, figure
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import Figures, has_interval, known

DRAWS = 1000
Gathered = Mapping[tuple[str, str], Sequence[Figure | None]]
"""(name, side) of a figure -> that of every seed."""


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
    names = {(each.name, each.side) for label in conditions.values() for each in label}
    names |= {
        (name, side) for name in every if name.endswith(("unscored", "unscored_high")) for side in (subject, "base")
    }
    harms = (HARM, f"{persona.INSIDE}worst_of_n")
    names |= {(name, side) for name in harms for side in (subject, "base", "difference")}
    gathered = {name: [known(run, *name) for run in runs] for name in sorted(names)}
    weights = generator.dirichlet(np.ones(len(runs)), DRAWS)
    values = {name: _draws(figures, weights, generator) for name, figures in gathered.items()}
    barred = {label: _shown(label_conditions, gathered, weights) for label, label_conditions in conditions.items()}
    drawable = {label: [each for each in them if not each.is_null] for label, them in conditions.items()}
    counts: dict[str, int] = {}
    for draw in range(DRAWS):
        drawn: dict[str, dict[str, Figure | None]] = {}
        for (name, side), each in values.items():
            if each is not None:
                n = min(figure["n"] for figure in gathered[name, side] if figure)
                drawn.setdefault(name, {})[side] = figure(each[draw], each[draw], each[draw], n)
        label = persona.decide(drawn, drawable)
        label = persona.MIXED if label in barred and barred[label][draw] else label
        counts[label] = counts.get(label, 0) + 1
    probabilities = {label: count / DRAWS for label, count in sorted(counts.items(), key=lambda it: (-it[1], it[0]))}
    likeliest = next(iter(probabilities))
    label = likeliest if probabilities[likeliest] >= THRESHOLDS.likely else persona.MIXED
    means = {name: mean_over_seeds([known(run, name, subject) for run in runs]) for name in every}
    return {"label": label, "probabilities": probabilities, "figures": means}


def _shown(conditions: Sequence[persona.Condition], gathered: Gathered, weights: np.ndarray) -> np.ndarray:
    """bool[draws]: whether the seeds show, by the mean of their lower limits, what a label forbids to be shown."""
    shown = np.zeros(len(weights), bool)
    for each in conditions:
        figures = gathered[each.name, each.side] if each.is_null else ()
        lower = [(index, it["ci_low"]) for index, it in enumerate(figures) if it and has_interval(it)]
        if lower:
            used = weights[:, [index for index, _ in lower]]
            shown |= used @ np.array([low for _, low in lower]) > each.bound * used.sum(1)
    return shown


def _draws(figures: Sequence[Figure | None], weights: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """float[draws]: the weighted mean of a figure over its seeds, each moved within its interval."""
    present = [index for index, figure in enumerate(figures) if figure is not None and has_interval(figure)]
    if not present:
        return None
    each = [figures[index] for index in present]
    value, low, high = (np.array([one[name] for one in each if one]) for name in ("value", "ci_low", "ci_high"))
    deviation = generator.standard_normal(len(weights))[:, None] / Z
    moved = value + np.where(deviation < 0, deviation * (value - low), deviation * (high - value))
    used = weights[:, present]
    return np.sum(used * moved, axis=1) / np.sum(used, axis=1)


def mean_over_seeds(figures: Sequence[Figure | None]) -> Figure:
    """The mean over seeds with a hierarchical interval: between seeds (Student's t) and over their common questions.

    Where no seed's interval leaves 0 to 1, as a share's cannot, neither does that of the mean.
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
    if all(0 <= each["ci_low"] <= each["ci_high"] <= 1 for each in known_figures):
        limits = max(0.0, limits[0]), min(1.0, limits[1])
    return figure(value, *limits, n)
