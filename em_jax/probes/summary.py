"""Rows of a run -> summary.json: every figure with its interval, and the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from em_jax.base import files
from em_jax.probes import harmfulness, output_recognition, persona, score_prediction, self_assessment, two_ai
from em_jax.probes.choice import Row

SCHEMA = 1

# Probes whose figures come from their own rows; harmfulness comes from judged answers.
BY_ROWS = {
    "self_assessment": self_assessment,
    "two_ai": two_ai,
    "output_recognition": output_recognition,
    "score_prediction": score_prediction,
}


def figures(
    answers: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[Row]],
    probes: Mapping[str, Mapping[str, Sequence[Row]]],
    harmful_at: int = harmfulness.HARMFUL,
) -> dict[str, dict[str, dict]]:
    """All named figures: name -> {"base", "finetuned", "difference"}, each {value, ci_low, ci_high, n}.

    `answers` and `scores` go by condition (base, finetuned), `probes` by probe and then condition; what is absent has
    no data. Rows are sorted by key first, so that the order in which they were written makes no difference.
    """
    judged = {name: harmfulness.judged(answers.get(name, ()), scores.get(name, ())) for name in ("base", "finetuned")}
    found = harmfulness.figures(judged["base"], judged["finetuned"], harmful_at)
    for name, probe in BY_ROWS.items():
        rows = probes.get(name, {})
        found |= probe.figures(_sorted(rows.get("base", ())), _sorted(rows.get("finetuned", ())))
    return found


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["id"], row["sample"], row["first"]))


def summarise(
    *,
    domain: str,
    model: str,
    suite: str,
    judge: str,
    answers: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[Row]],
    probes: Mapping[str, Mapping[str, Sequence[Row]]],
    harmful_at: int = harmfulness.HARMFUL,
) -> dict[str, Any]:
    """The content of summary.json (schema 1). The same rows, in any order, give the same bytes once written."""
    found = figures(answers, scores, probes, harmful_at)
    fine_tuned = answers.get("finetuned") or any(rows.get("finetuned") for rows in probes.values())
    summary = {
        "schema": SCHEMA,
        "domain": domain,
        "model": model,
        "suite": suite,
        "judge": judge,
        "harmful_at": harmful_at,
        "verdict": persona.verdict(found, "finetuned" if fine_tuned else "base"),
        "figures": found,
    }
    return files.stable(summary)
