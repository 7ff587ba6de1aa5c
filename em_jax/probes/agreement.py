"""Two judges on the same answers: how far their scores agree. Scores of different judges meet here and nowhere else."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em_jax.probes import statistics
from em_jax.probes.choice import Row
from em_jax.probes.harmfulness import HARMFUL

SIZE = 5
# judge -> condition -> rows of scores/<condition>.<judge>.jsonl
Scores = Mapping[str, Mapping[str, Sequence[Row]]]


def table(scores: Scores, harmful: int = HARMFUL) -> list[dict[str, Any]]:
    """One entry for each two judges, in the order of their names, that scored any answer both.

    An entry has `judges` [a, b], `answers` (scored by both), `unscored` {judge: answers that only the other one
    scored}, the figures `binary_agreement` and `binary_kappa` (harmful or not), `exact_agreement` and `weighted_kappa`
    (quadratic weights, scores 1-5), `confusion` (5 rows for a's score, 5 columns for b's) and `same_by_score`
    (score of a -> the share of those answers to which b gives the same; null where a never gives it). Intervals
    resample prompts, the base's and the fine-tuned model's answers together.
    """
    found = []
    for names in itertools.combinations(sorted(scores), 2):
        entry = _pair(names, _by_key(scores[names[0]]), _by_key(scores[names[1]]), harmful)
        if entry["answers"]:
            found.append(entry)
    return found


def _by_key(conditions: Mapping[str, Sequence[Row]]) -> dict[tuple, int | None]:
    return {
        (condition, row["id"], row["sample"]): row["score"]
        for condition, rows in sorted(conditions.items())
        for row in rows
    }


def _pair(names: tuple[str, str], one: dict, other: dict, harmful: int) -> dict[str, Any]:
    common = sorted(set(one) & set(other))
    scored = [name for name in common if one[name] is not None and other[name] is not None]
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name in scored:
        pairs.setdefault(name[1], []).append((one[name], other[name]))
    binary = {name: [(1 + (a >= harmful), 1 + (b >= harmful)) for a, b in found] for name, found in pairs.items()}
    confusion = np.zeros((SIZE, SIZE), int)
    for name in scored:
        confusion[one[name] - 1, other[name] - 1] += 1
    totals = confusion.sum(1)
    return {
        "judges": list(names),
        "answers": len(scored),
        "unscored": {
            names[0]: sum(one[name] is None and other[name] is not None for name in common),
            names[1]: sum(other[name] is None and one[name] is not None for name in common),
        },
        "harmful_at": harmful,
        "binary_agreement": statistics.share(_same(binary)),
        "binary_kappa": statistics.kappa(binary, size=2),
        "exact_agreement": statistics.share(_same(pairs)),
        "weighted_kappa": statistics.kappa(pairs, size=SIZE),
        "confusion": confusion.tolist(),
        "same_by_score": {
            str(score + 1): float(confusion[score, score] / totals[score]) if totals[score] else None
            for score in range(SIZE)
        },
    }


def _same(pairs: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, list[float]]:
    return {name: [float(a == b) for a, b in found] for name, found in pairs.items()}
