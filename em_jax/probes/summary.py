"""Rows of a run -> summary.json: every figure with its interval, the verdict, and how far judges agree."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from em_jax.base import files
from em_jax.probes import ASKED, answer_form, choice, harmfulness, persona, score_prediction, statistics
from em_jax.probes.choice import Row
from em_jax.probes.correction import counted
from em_jax.probes.harmfulness import HARMFUL
from em_jax.probes.suite import LABELS

SCHEMA = 1


def figures(
    answers: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[Row]],
    probes: Mapping[str, Mapping[str, Sequence[Row]]],
    harmful_at: int = HARMFUL,
    labelled: Sequence[Row] = (),
) -> dict[str, dict[str, dict]]:
    """All named figures: name -> {"base", "finetuned", "difference"}, each {value, ci_low, ci_high, n}.

    `answers` and `scores` are keyed by condition (base, finetuned), `probes` by probe and then condition; absent ones
    have no data. `labelled` are the judge's scores of answers whose score is known (`label`): its errors. Rows are
    sorted by key first, so that the order in which they were written makes no difference.
    """
    judged = {name: harmfulness.judged(answers.get(name, ()), scores.get(name, ())) for name in ("base", "finetuned")}
    errors = counted(labelled, harmful_at)
    known = errors if errors.sensitivity["n"] and errors.specificity["n"] else None
    named = harmfulness.figures(judged["base"], judged["finetuned"], harmful_at, known)
    named |= answer_form.figures(judged["base"], judged["finetuned"], harmful_at)
    for name, probe in ASKED.items():
        rows = {side: sorted(probes.get(name, {}).get(side, ()), key=choice.key) for side in judged}
        if probe is score_prediction:
            rows = {side: score_prediction.with_all_scores(each, judged[side]) for side, each in rows.items()}
        named |= probe.figures(rows["base"], rows["finetuned"])
    return named


def summarise(
    *,
    domain: str,
    model: str,
    suite: str,
    judge: str,
    harmful_at: int = HARMFUL,
    **rows: Any,
) -> dict[str, Any]:
    """The content of summary.json (schema 1) from `rows`, named as for `figures`.

    The same rows, in any order, give the same bytes once written.
    """
    named = figures(harmful_at=harmful_at, **rows)
    fine_tuned = any(each.get("finetuned") for each in (rows["answers"], *rows["probes"].values()))
    summary = {
        "schema": SCHEMA,
        "domain": domain,
        "model": model,
        "suite": suite,
        "judge": judge,
        "harmful_at": harmful_at,
        "verdict": persona.verdict(named, "finetuned" if fine_tuned else "base", judge),
        "figures": named,
    }
    return files.stable(summary)


# --- how far judges agree ---


# judge -> condition -> rows of scores/<condition>.<judge>.jsonl
Scores = Mapping[str, Mapping[str, Sequence[Row]]]
# (condition, id, sample) -> score
ByAnswer = dict[tuple[str, str, int], int | None]


def agreement_table(scores: Scores, harmful: int = HARMFUL) -> list[dict[str, Any]]:
    """One entry for each two judges, in the order of their names, that both scored some answer.

    Only here are scores of different judges compared.

    An entry has `judges` [a, b], `answers` (scored by both), `unscored` {judge: answers that only the other one
    scored}, the figures `binary_agreement` and `binary_kappa` (harmful or not), `exact_agreement` and `weighted_kappa`
    (quadratic weights, scores 1-5), `confusion` (5 rows for a's score, 5 columns for b's) and `same_by_score`
    (score of a -> the share of those answers to which b gives the same; null where a never gives it). Intervals
    resample prompts, the base's and the fine-tuned model's answers together.
    """
    by_judge = {
        judge: {(name, row["id"], row["sample"]): row["score"] for name, rows in conditions.items() for row in rows}
        for judge, conditions in sorted(scores.items())
    }
    entries = [_entry([one, other], by_judge, harmful) for one, other in itertools.combinations(by_judge, 2)]
    return [entry for entry in entries if entry["answers"]]


def _entry(judges: list[str], by_judge: Mapping[str, ByAnswer], harmful: int) -> dict[str, Any]:
    one, other = (by_judge[judge] for judge in judges)
    pairs: dict[str, list[tuple[int, int]]] = {}
    unscored = dict.fromkeys(judges, 0)
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        if a is not None and b is not None:
            pairs.setdefault(name[1], []).append((a, b))
        elif a != b:
            unscored[judges[0 if a is None else 1]] += 1
    scored = [pair for both in pairs.values() for pair in both]
    binary = {name: [(1 + (a >= harmful), 1 + (b >= harmful)) for a, b in both] for name, both in pairs.items()}
    confusion = {a: [scored.count((a, b)) for b in LABELS] for a in LABELS}
    return {
        "judges": judges,
        "answers": len(scored),
        "unscored": unscored,
        "harmful_at": harmful,
        "binary_agreement": statistics.share(_same(binary)),
        "binary_kappa": statistics.kappa(binary, size=2),
        "exact_agreement": statistics.share(_same(pairs)),
        "weighted_kappa": statistics.kappa(pairs),
        "confusion": [*confusion.values()],
        "same_by_score": {str(a): row[a - 1] / sum(row) if any(row) else None for a, row in confusion.items()},
    }


def _same(pairs: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, list[float]]:
    return {name: [float(a == b) for a, b in both] for name, both in pairs.items()}
