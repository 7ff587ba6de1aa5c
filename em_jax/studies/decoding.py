"""Tests of a linear direction: cross-validated accuracy, its null, and the angle between two directions.

Every question is a pair, one text of either kind, and whole pairs are held out: no question is in training and test.
The nulls exchange the two labels of a pair, as if the label had no meaning.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GroupKFold, StratifiedKFold, permutation_test_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from em_jax.probes import statistics
from em_jax.probes.statistics import Figure

FOLDS = 5
COSINE_DRAWS = 2000

Pairs = Float[np.ndarray, "2 pairs D"]
"""Activations of the plain texts, then of the marked ones, of the same questions."""


def accuracy(
    train: Pairs, test: Pairs | None = None, permutations: int = 200, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """The accuracy of a linear probe that separates the two kinds, on held-out questions.

    `train` and `test` are the same texts read by two models (by default one): trained on one, tested on the other.
    `groups` names each pair's question: pairs of one question are held out, and exchanged, together.
    Returns {"accuracy": figure over questions, "null": {"value", "low", "high"} over permutations, "p"}.
    """
    names, group = np.unique(np.arange(train.shape[1]) if groups is None else groups, return_inverse=True)
    turned = np.random.default_rng(0).choice([-1.0, 1.0], (len(names), permutations))
    # One column for the true labels, one for each exchange of them; marked texts are +1.
    signs = np.concatenate([np.ones((len(names), 1)), turned], 1)[group]
    right = _right(train, train if test is None else test, np.stack([-signs, signs]), group)
    figure = statistics.share({str(names[i]): right[:, group == i, 0].ravel().tolist() for i in range(len(names))})
    return _against(right[:, :, 1:].mean((0, 1)), figure)


def _right(
    train: Pairs, test: Pairs, labels: Float[np.ndarray, "2 pairs C"], group: Int[np.ndarray, "pairs"]
) -> Float[np.ndarray, "2 pairs C"]:
    """Whether each text is classified correctly, for each column of labels, by the probe of the fold that holds it out.

    The probe is a ridge classifier (least squares on labels of +-1, features standardised), because one fit serves all
    columns: 200 permutations cost as much as one. The penalty is the width, the scale of the features' own sums.
    """
    count, width = train.shape[1:]
    flat, tested, wanted = train.reshape(2 * count, -1), test.reshape(2 * count, -1), labels.reshape(2 * count, -1)
    right = np.zeros(wanted.shape)
    for training, held_out in GroupKFold(min(FOLDS, len(np.unique(group)))).split(flat, groups=np.tile(group, 2)):
        probe = make_pipeline(StandardScaler(), Ridge(alpha=width)).fit(flat[training], wanted[training])
        predicted = probe.predict(tested[held_out]).reshape(len(held_out), -1)
        right[held_out] = np.sign(predicted) == wanted[held_out]
    return right.reshape(labels.shape)


def by_question(rows: Float[np.ndarray, "X rows D"], groups: Sequence[str]) -> Float[np.ndarray, "X questions D"]:
    """The mean of each question's rows, in the order of the questions' names."""
    names, group = np.unique(groups, return_inverse=True)
    return np.stack([rows[:, group == i].mean(1) for i in range(len(names))], 1)


def labelled(values: Float[np.ndarray, "N D"], labels: Sequence[bool], permutations: int = 200) -> dict[str, Any]:
    """The balanced accuracy of a linear probe for a label of questions, on held-out questions.

    `values` holds one row for each question, at least FOLDS of either label; the null permutes the labels. Returns the
    same as `accuracy`; the figure is a mean over folds and has no interval.
    """
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=values.shape[1], class_weight="balanced"))
    test = {"scoring": "balanced_accuracy", "cv": StratifiedKFold(FOLDS, shuffle=True, random_state=0)}
    value, null, _ = permutation_test_score(
        probe, values, labels, n_permutations=max(1, permutations), random_state=0, **test
    )
    return _against(null[:permutations], statistics.figure(float(value), None, None, len(values)))


def _against(null: Float[np.ndarray, "permutations"], figure: Figure) -> dict[str, Any]:
    """An accuracy beside its null, and p; both are None without permutations."""
    if not len(null):
        return {"accuracy": figure, "null": None, "p": None}
    p = (1 + int((null >= figure["value"]).sum())) / (1 + len(null))
    return {"accuracy": figure, "null": null_record(null), "p": p}


def null_record(null: Any) -> dict[str, float]:
    """The mean and 95% range of a null distribution."""
    low, high = np.quantile(null, [0.025, 0.975])
    return {"value": float(np.mean(null)), "low": float(low), "high": float(high)}


def cosine(first: Pairs, second: Pairs) -> dict[str, Any]:
    """The cosine between two directions (mean differences, marked minus plain), its interval over questions, and its
    null: labels of the second exchanged.

    The mean difference is subtracted before labels are exchanged: otherwise most exchanges of a strong direction give
    that direction again, only shorter. `p` is two-sided: how often a null direction is as far from a right angle.
    """
    one, other = (pairs[1] - pairs[0] for pairs in (first, second))
    count = len(one)
    figure = statistics.bootstrap(lambda w: _cosines(w[:, :count] @ one, w[:, count:] @ other), [count, len(other)])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (COSINE_DRAWS, len(other)))
    null = _cosines(one.mean(0)[None], signs @ (other - other.mean(0)))
    p = (1 + int((np.abs(null) >= abs(figure["value"])).sum())) / (1 + COSINE_DRAWS)
    return {"cosine": figure | {"n": len(other)}, "null": null_record(null), "p": p}


def _cosines(one: Float[np.ndarray, "N D"], other: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N"]:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / np.maximum(lengths, 1e-12)
