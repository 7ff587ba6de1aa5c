"""The comparison of several runs: the plane with one point per model, verdicts beside the planted ones, all figures."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_jax.base.errors import UserError
from em_jax.base.files import write_atomic
from em_jax.report.figures import Point, plane
from em_jax.report.page import render
from em_jax.report.paper import (
    CLAIMS_HIGH,
    CLAIMS_LOW,
    PAPER_VERDICTS,
    PICKS,
    RATE,
    SELF,
    WORST,
    follow_up_value,
    paper_value,
)
from em_jax.report.reading import Figure, Run, read_run
from em_jax.report.run_page import agreements, write_figures
from em_jax.report.vocabulary import PROBES, VERDICTS, FigureName, domain_place

PAPER_FIGURES = (WORST, RATE, PICKS, SELF, CLAIMS_HIGH, CLAIMS_LOW)
MEDICAL = ("bad_medical", "emergent_medical")
"""One topic from two sources: what tells a domain's effect from that of where its rows were written."""
CSV_COLUMNS = (
    *("domain", "seed", "model", "suite", "judge", "verdict", "planted", "figure", "condition"),
    *("value", "ci_low", "ci_high", "n", "paper_32b", "follow_up_7b"),
)


@dataclass(frozen=True)
class Group:
    """The runs of one model: same domain, base, suite and judge, by rising seed."""

    name: str
    runs: tuple[Run, ...]
    planted: str | None
    source: str | None
    """Where the rows of its domain were published; None where nothing is known, or the rows are the organism's."""

    @property
    def domain(self) -> str:
        return self.runs[0].domain

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(run.label for run in self.runs)

    @property
    def tone(self) -> str:
        """The verdict all seeds agree on, else mixed."""
        label = self.labels[0]
        return label if label in VERDICTS and set(self.labels) == {label} else "mixed"

    @property
    def right(self) -> int:
        return sum(label == self.planted for label in self.labels)

    @property
    def condition(self) -> str:
        """Which side of a run is this model: the fine-tuned one, or the base where nothing was trained."""
        return "finetuned" if any(run.has("finetuned") for run in self.runs) else "base"

    @property
    def published_as(self) -> str:
        """The name under which published figures know this model."""
        return "base" if self.condition == "base" else self.domain

    def figures(self, name: str) -> list[Figure]:
        """The figure in every seed that has a value for it."""
        found = (run.figure(name, self.condition) for run in self.runs)
        return [figure for figure in found if figure.value is not None]

    def spread(self, name: str) -> "Spread":
        return spread(self.figures(name))


@dataclass(frozen=True)
class Spread:
    """A figure over training seeds: its mean and range there, apart from the mean interval of question sampling."""

    mean: Figure
    lowest: float | None = None
    highest: float | None = None
    seeds: int = 0


def spread(figures: Sequence[Figure]) -> Spread:
    """Mean over seeds; its interval is the mean of the seeds' own intervals, so it holds question sampling only."""
    if not figures:
        return Spread(Figure())

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else sum(values) / len(values)

    values = [figure.value for figure in figures]
    average = Figure(
        mean(values),
        mean([figure.ci_low for figure in figures]),
        mean([figure.ci_high for figure in figures]),
        figures[0].n,
    )
    return Spread(average, min(values), max(values), len(figures))


def compare(
    run_dirs: Iterable[str | Path],
    out_dir: str | Path,
    planted: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Path:
    """Write compare.html, compare.csv and figures/plane.svg over several runs.

    Args:
      run_dirs: run directories; those without a summary are named on the page and left out.
      out_dir: where the page goes; made if it is not there.
      planted: the verdict each domain was built to give; shown for runs of the organism.
      sources: where each domain's rows were published; shown for other runs.

    Returns:
      The path of compare.html.

    Raises:
      UserError: none of the directories holds a summary.
    """
    runs, missing = [], []
    for directory in run_dirs:
        try:
            runs.append(read_run(directory))
        except UserError as error:
            missing.append(str(error) if not Path(directory).name else f"{Path(directory).name}: no readable summary")
    if not runs:
        raise UserError("nothing to compare: none of the run directories holds a summary.json; run them first")
    out_dir = Path(out_dir)
    groups = _groups(runs, planted or {}, sources or {})
    base = _base_point(groups)
    drawing = plane(_points(groups), base, labels=True, title="Conduct against self-description, one point per model")
    page = render("compare.html", **_values(groups, missing, drawing, out_dir, base))
    write_figures(out_dir / "figures", [drawing])
    write_atomic(out_dir / "compare.csv", _csv(groups))
    return write_atomic(out_dir / "compare.html", page)


def _groups(runs: Sequence[Run], planted: Mapping[str, str], sources: Mapping[str, str]) -> list[Group]:
    by_key: dict[tuple, list[Run]] = {}
    for run in runs:
        by_key.setdefault((run.domain, run.model, run.suite, run.judge), []).append(run)
    several_models = len({run.model for run in runs}) > 1
    groups = []
    for key in sorted(by_key, key=lambda key: (domain_place(key[0]), key[1:])):
        domain, model = key[:2]
        name = "base, untrained" if domain == "none" else domain
        if several_models:
            name += f" · {Path(model).name}"
        ordered = sorted(by_key[key], key=lambda run: (run.seed.zfill(12), str(run.directory)))
        organism = ordered[0].is_organism
        told, source = (known.get(domain) or None for known in (planted, sources))
        groups.append(Group(name, tuple(ordered), told if organism else None, None if organism else source))
    return groups


def _points(groups: Sequence[Group]) -> list[Point]:
    points = []
    for group in groups:
        if group.condition == "base":
            continue
        if len(group.runs) > 1:
            points += [
                Point(
                    f"seed {run.seed}", run.label, run.figure(WORST, "finetuned"), run.figure(PICKS, "finetuned"), True
                )
                for run in group.runs
            ]
        harm, picks = group.spread(WORST).mean, group.spread(PICKS).mean
        if len(group.runs) > 1:
            harm, picks = Figure(harm.value, n=harm.n), Figure(picks.value, n=picks.n)
        points.append(Point(group.name, group.tone, harm, picks))
    return points


def _base_point(groups: Sequence[Group]) -> Point | None:
    """The base of the run that probes nothing else, otherwise of the first run that has one."""
    ordered = sorted(groups, key=lambda group: group.condition != "base")
    for run in (run for group in ordered for run in group.runs):
        point = Point("base", "base", run.figure(WORST, "base"), run.figure(PICKS, "base"))
        if point.drawable:
            return point
    return None


def _values(groups: Sequence[Group], missing: list[str], drawing, out_dir: Path, base: Point | None) -> dict[str, Any]:
    runs = [run for group in groups for run in group.runs]
    told = [group for group in groups if group.planted]
    names: list[FigureName] = [figure for probe in PROBES for figure in probe.figures]
    return {
        "groups": groups,
        "runs": runs,
        "missing": missing,
        "drawing": drawing,
        "base": base,
        "planted_right": sum(group.right for group in told),
        "planted_total": sum(len(group.runs) for group in told),
        "has_planted": bool(told),
        "seeds": max(len(group.runs) for group in groups),
        "organism": any(run.is_organism for run in runs),
        "agreements": [entry for run in runs for entry in agreements(run)],
        "judges_itself": any(run.judges_itself for run in runs),
        "several": {
            key: sorted({getattr(run, key) for run in runs})
            for key in ("model", "suite", "judge")
            if len({getattr(run, key) for run in runs}) > 1
        },
        "links": {run.directory: _link(run, out_dir) for run in runs},
        "verdicts": VERDICTS | {"mixed": "The evidence does not settle on one persona, or the seeds disagree."},
        "paper_verdicts": PAPER_VERDICTS,
        "probes": PROBES,
        "paper_figures": [figure for name in PAPER_FIGURES for figure in names if figure.name == name],
        "plane_figures": [figure for name in (WORST, PICKS) for figure in names if figure.name == name],
        "paper_value": paper_value,
        "follow_up_value": follow_up_value,
        "by_source": _by_source(groups),
        "medical": _medical(groups),
        "headline": [figure for probe in PROBES for figure in probe.headline],
    }


def _by_source(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The models by where their rows come from, in the order of the page."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.source:
            found.setdefault(group.source, []).append(group)
    return found


def _medical(groups: Sequence[Group]) -> list[Group]:
    """A model of medical advice from each source; none where one of them is missing."""
    found = [next((g for g in groups if g.source and g.domain == name), None) for name in MEDICAL]
    return [] if None in found else found


def _link(run: Run, out_dir: Path) -> str | None:
    """The run's report, relative to the comparison page; None where there is none."""
    report = run.directory / "report.html"
    if not report.exists():
        return None
    return quote(Path(os.path.relpath(report.resolve(), out_dir.resolve())).as_posix(), errors="replace")


def _csv(groups: Sequence[Group]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(CSV_COLUMNS)
    for group in groups:
        for run in group.runs:
            head = [run.domain, run.seed, run.model, run.suite, run.judge, run.label, group.planted or ""]
            for name in (figure.name for probe in PROBES for figure in probe.figures):
                for condition in ("base", "finetuned", "difference"):
                    figure = run.figure(name, condition)
                    if figure.value is None and figure.n == 0 and condition == "difference":
                        continue
                    numbers = (figure.value, figure.ci_low, figure.ci_high)
                    shown = ["" if value is None else f"{value:.10g}" for value in numbers]
                    stated = ["", ""] if condition == "difference" else _stated(group, name, condition)
                    rows.writerow([*map(_plain_cell, head), name, condition, *shown, figure.n, *stated])
    return out.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


def _stated(group: Group, name: str, condition: str) -> list[str]:
    """What the paper and the follow-up state for this side of a run."""
    side = "base" if condition == "base" else group.domain
    return [found.text if found else "" for found in (paper_value(side, name), follow_up_value(side, name))]


def _plain_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text
