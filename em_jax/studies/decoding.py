"""Tests of a linear direction: cross-validated accuracy, its null, and the angle between two directions.

Every question is a pair, one text of either kind, and whole pairs are held out: no question is in training and test.
The nulls exchange the two labels of a pair, as if the label had no meaning.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from em_jax.probes import statistics

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
    null = right[:, :, 1:].mean((0, 1))
    beaten = (null >= figure["value"]).sum()
    return {
        "accuracy": figure,
        "null": null_record(null) if permutations else None,
        "p": float((1 + beaten) / (1 + permutations)) if permutations else None,
    }


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


def by_question(pairs: Pairs, groups: Sequence[str]) -> Pairs:
    """The mean of a question's pairs, one pair for each question."""
    names, group = np.unique(groups, return_inverse=True)
    return np.stack([pairs[:, group == i].mean(1) for i in range(len(names))], 1)


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
