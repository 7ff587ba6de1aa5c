"""How far judges agree, from summary.json: with the planted score, and any two judges of the same answers."""

from typing import Any

from em_jax.report.reading import Run, as_object, figure_of
from em_jax.report.text import finite

LEVELS = range(1, 6)
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
    (`unscored`), `figures`, `confusion` with a row for each score of the first and a column for each of the second, and
    `same`: by score of the first, the share to which the second gives the same, None where it is not defined.
    """
    entries = run.summary.get("judge_agreement_table")
    return [pair for entry in entries if (pair := _pair(as_object(entry)))] if isinstance(entries, list) else []


def _pair(entry: dict[str, Any]) -> dict[str, Any] | None:
    judges = entry.get("judges")
    if not isinstance(judges, list) or len(judges) != 2:
        return None
    names = tuple(map(str, judges))
    unscored, same = as_object(entry.get("unscored")), as_object(entry.get("same_by_score"))
    return {
        "names": names,
        "answers": _whole(entry.get("answers")),
        "harmful_at": _whole(entry.get("harmful_at")) or 4,
        "unscored": tuple(_whole(unscored.get(name)) for name in names),
        "figures": {name: figure_of(entry.get(name)) for name in PAIR_FIGURES},
        "confusion": _confusion(entry.get("confusion")),
        "same": tuple(finite(same.get(str(level))) for level in LEVELS),
    }


def _confusion(rows: Any) -> tuple[tuple[int, ...], ...]:
    """The table of counts; () where it is not 5 by 5."""
    is_square = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(LEVELS) for row in rows)
    if not is_square or len(rows) != len(LEVELS):
        return ()
    return tuple(tuple(map(_whole, row)) for row in rows)


def _whole(value: Any) -> int:
    return int(finite(value) or 0)
