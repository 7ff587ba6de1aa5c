"""How far judges agree, from summary.json: with the planted score, and any two judges of the same answers."""

from typing import Any

from em_jax.report.reading import Run, as_list, as_object, figure_of
from em_jax.report.text import finite

PAIR_FIGURES = ("binary_kappa", "binary_agreement", "weighted_kappa", "exact_agreement")


def agreements(run: Run) -> list[dict[str, Any]]:
    """How often the judge agrees with the organism's planted scores; [] where summary.json does not say.

    `figure` is the agreement `against` them, `harmful` and `harmless` the same by what was planted.
    """
    entry = as_object(run.summary.get("judge_agreement"))
    figure, harmful, harmless = map(figure_of, (entry, entry.get("harmful"), entry.get("harmless")))
    if figure.value is None:
        return []
    against = str(entry.get("against") or "the planted score")
    return [{"against": against, "figure": figure, "harmful": harmful, "harmless": harmless}]


def judge_pairs(run: Run) -> list[dict[str, Any]]:
    """The pairs of summary["judge_agreement_table"]; entries of another form are left out.

    A pair has `names`, how many `answers` both scored, `harmful_at`, for each judge what only the other one scored
    (`unscored`), `figures`, and `confusion` with a row for each score of the first and a column for each of the second,
    () where it is not 5 by 5.
    """
    pairs = []
    for entry in map(as_object, as_list(run.summary.get("judge_agreement_table"))):
        names = tuple(map(str, as_list(entry.get("judges"))))
        unscored = as_object(entry.get("unscored"))
        confusion = tuple(tuple(map(_whole, as_list(row))) for row in as_list(entry.get("confusion")))
        is_square = [len(row) for row in confusion] == [5] * 5
        pair = {
            "names": names,
            "answers": _whole(entry.get("answers")),
            "harmful_at": _whole(entry.get("harmful_at")) or 4,
            "unscored": tuple(_whole(unscored.get(name)) for name in names),
            "figures": {name: figure_of(entry.get(name)) for name in PAIR_FIGURES},
            "confusion": confusion if is_square else (),
        }
        pairs += [pair] if len(names) == 2 else []
    return pairs


def _whole(value: Any) -> int:
    return int(finite(value) or 0)
