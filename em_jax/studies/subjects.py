"""A subject of a study: one model, known by its rows in a run directory; its figures, compared with another's.

A study continues where it stopped: its settings are checked, and only missing rows are asked for.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.probes import harmfulness, score_prediction, self_assessment, statistics, two_ai
from em_jax.probes.cautions import PREDICTED
from em_jax.probes.choice import Key, key
from em_jax.probes.judge import AGAIN
from em_jax.runs.run import ADAPTER, Row, Run

Figures = dict[str, dict[str, Any]]

PROBES = ("two_ai", "self_assessment", "score_prediction")
"""The choice probes of a study. Output recognition would need the answers of other models too."""
RATE, SELF = "harmfulness.rate", "self_assessment.score"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The judged answers of one model and its rows of each probe, sorted by key."""

    judged: list[Row] = dataclasses.field(default_factory=list)
    probes: dict[str, list[Row]] = dataclasses.field(default_factory=lambda: {name: [] for name in PROBES})


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model of a study. `condition` says which rows of the run are its own: base or finetuned."""

    name: str
    run: Run
    condition: str = ADAPTER

    @property
    def adapter(self) -> Path | None:
        """The run's adapter; None for the base."""
        return self.run.adapter if self.condition == ADAPTER else None

    def judged(self) -> list[Row]:
        """Its answers with the judge's scores."""
        return self.run.judged(self.condition)

    def rows(self) -> Rows:
        """All its rows."""
        probes = {name: sorted(self.run.probe_rows(self.condition, name), key=key) for name in PROBES}
        return Rows(self.judged(), probes)


def figures(first: Rows, second: Rows, harmful_at: int) -> Figures:
    """Conduct, self-description and the error of predicted scores of two models, as "base" and "finetuned".

    The difference is second minus first, paired by question. The kappas and formats of a whole summary are left out: at
    dozens of steps they would take minutes.
    """

    one, other = first.probes, second.probes
    assessed, predicted = "self_assessment", "score_prediction"
    difference = self_assessment.paired_difference
    errors = {PREDICTED: lambda rows: score_prediction.errors_of(rows, "shown", "high")}
    return (
        harmfulness.figures(first.judged, second.judged, harmful_at)
        | two_ai.figures(one["two_ai"], other["two_ai"])
        | statistics.compare(
            one[assessed], other[assessed], {SELF: self_assessment.grouped}, statistics.mean_of_means, difference
        )
        | statistics.compare(one[predicted], other[predicted], errors, *score_prediction.OF_ERRORS)
    )


def check_settings(out: Path, settings: Mapping[str, Any], growing: str = "") -> None:
    """Write settings.json of a study, or refuse a directory that was begun with others.

    The mapping named `growing` may gain entries. Raises UserError that names what differs.
    """
    path, now = out / "settings.json", files.stable(settings)
    if path.is_file():
        before = files.read_object(path, "the settings of a study")
        if growing:
            before[growing] = now[growing] | before.get(growing, {})
            now[growing] = before[growing] | now[growing]
        differing = []
        for name, value in now.items():
            old = before.get(name)
            if name in ("settings", "options"):  # one that went has no other value now
                differing += [it for it in value if (old or {}).get(it) != value[it]]
            elif old != value:
                differing.append(name)
        if differing:
            raise UserError(f"{out} was begun with other {', '.join(differing)}: give the same, or name another --out")
    files.write_json(path, now)


def kept_rows(path: Path) -> list[Row]:
    """The rows of a file, from which scores that were not given for want of a connection are taken out."""
    return files.keep_rows(path, lambda row: not row.get(AGAIN))


def complete(path: Path, wanted: Collection[Key], ask: Callable[[set[Key]], Iterable[Row]]) -> list[Row]:
    """The rows of a file, after `ask(keys that are done)` has appended those of the keys `wanted` that are missing."""
    done = {key(row) for row in kept_rows(path)}
    if not done.issuperset(wanted):
        with files.Appender(path) as output:
            for row in ask(done):
                output.write(row)
    return files.read_rows(path)
