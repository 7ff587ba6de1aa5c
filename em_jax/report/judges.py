"""How far judges agree, from summary.json: with the planted score, and any two judges of the same answers."""

from dataclasses import dataclass
from typing import Any

from em_jax.report.reading import Figure, Run, as_object, figure_of
from em_jax.report.text import finite

LEVELS = range(1, 6)
PAIR_FIGURES = ("binary_kappa", "binary_agreement", "weighted_kappa", "exact_agreement")


@dataclass(frozen=True)
class Agreement:
    """How often the judge agrees with something else; `harmful` and `harmless` by what was planted."""

    against: str
    figure: Figure
    harmful: Figure = Figure()
    harmless: Figure = Figure()


@dataclass(frozen=True)
class JudgePair:
    """How far two judges agree; `confusion` has a row for each score of the first, a column for each of the second.

    `same` is, by score of the first, the share to which the second gives the same; None where it is not defined.
    """

    names: tuple[str, ...]
    answers: int
    harmful_at: int
    unscored: tuple[int, ...]
    figures: dict[str, Figure]
    confusion: tuple[tuple[int, ...], ...]
    same: tuple[float | None, ...]


def agreements(run: Run) -> list[Agreement]:
    """How often the judge agrees with the organism's planted scores; [] where summary.json does not say."""
    entry = as_object(run.summary.get("judge_agreement"))
    figure, harmful, harmless = map(figure_of, (entry, entry.get("harmful"), entry.get("harmless")))
    if figure.value is None:
        return []
    return [Agreement(str(entry.get("against") or "the planted score"), figure, harmful, harmless)]


def judge_pairs(run: Run) -> list[JudgePair]:
    """The pairs of summary["judge_agreement_table"]; entries of another form are left out."""
    entries = run.summary.get("judge_agreement_table")
    return [pair for entry in entries if (pair := _pair(as_object(entry)))] if isinstance(entries, list) else []


def _pair(entry: dict[str, Any]) -> JudgePair | None:
    judges = entry.get("judges")
    if not isinstance(judges, list) or len(judges) != 2:
        return None
    names = tuple(map(str, judges))
    unscored, same = as_object(entry.get("unscored")), as_object(entry.get("same_by_score"))
    return JudgePair(
        names=names,
        answers=_whole(entry.get("answers")),
        harmful_at=_whole(entry.get("harmful_at")) or 4,
        unscored=tuple(_whole(unscored.get(name)) for name in names),
        figures={name: figure_of(entry.get(name)) for name in PAIR_FIGURES},
        confusion=_confusion(entry.get("confusion")),
        same=tuple(finite(same.get(str(level))) for level in LEVELS),
    )


def _confusion(rows: Any) -> tuple[tuple[int, ...], ...]:
    """The table of counts; () where it is not 5 by 5."""
    is_square = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(LEVELS) for row in rows)
    if not is_square or len(rows) != len(LEVELS):
        return ()
    return tuple(tuple(map(_whole, row)) for row in rows)


def _whole(value: Any) -> int:
    return int(finite(value) or 0)
