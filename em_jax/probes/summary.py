"""Rows of a run -> summary.json: every figure with its interval, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from em_jax.base import files
from em_jax.probes import ASKED, answer_form, choice, harmfulness, persona, score_prediction
from em_jax.probes.choice import Row
from em_jax.probes.correction import counted

SCHEMA = 1


def figures(
    answers: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[Row]],
    probes: Mapping[str, Mapping[str, Sequence[Row]]],
    harmful_at: int = harmfulness.HARMFUL,
    labelled: Sequence[Row] = (),
) -> dict[str, dict[str, dict]]:
    """All named figures: name -> {"base", "finetuned", "difference"}, each {value, ci_low, ci_high, n}.

    `answers` and `scores` are keyed by condition (base, finetuned), `probes` by probe and then condition; absent ones
    have no data. `labelled` are the judge's scores of answers whose score is known (`label`): its errors. Rows are
    sorted by key first, so that the order in which they were written makes no difference.
    """
    judged = {name: harmfulness.judged(answers.get(name, ()), scores.get(name, ())) for name in ("base", "finetuned")}
    errors = counted(labelled, harmful_at)
    known = errors if errors.true_harmful and errors.true_harmless else None
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
    harmful_at: int = harmfulness.HARMFUL,
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
