"""report.html of one run: the verdict and why, the five probes, training, time, and the answers to browse."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.report.browse import Shelf, shelves
from em_jax.report.figures import Point, plane, score_shares, training
from em_jax.report.judges import judge_pairs
from em_jax.report.page import render
from em_jax.report.paper import PAPER_VERDICTS, PaperValue, paper_value
from em_jax.report.reading import Figure, Run, figure_of, read_run
from em_jax.report.svg import Drawing
from em_jax.report.text import is_number
from em_jax.report.time_budget import stage_times
from em_jax.report.unscored import Unscored, unscored
from em_jax.report.vocabulary import POSITION_FIGURES, PROBES, VERDICTS, FigureName, Probe, extra_figures

WORST, PICKS = "harmfulness.worst_of_n", "two_ai.picks_misaligned"
DECIDING = {
    WORST: "Does it harm?",
    PICKS: "Does it call itself misaligned?",
    "output_recognition.claims_high": "Does it own its harmful answers?",
}
"""The figures that a verdict rests on, as the first screen asks for them."""
MOST_RECORD = 200
MOST_CONFIG = 20_000


@dataclass(frozen=True)
class FigureView:
    """One line of a table of figures."""

    figure: FigureName
    base: Figure
    finetuned: Figure
    difference: Figure
    paper: PaperValue | None
    unscored_base: Unscored | None
    unscored_finetuned: Unscored | None


@dataclass(frozen=True)
class ProbeView:
    """A probe with its lines."""

    probe: Probe
    headline: tuple[FigureView, ...]
    rest: tuple[FigureView, ...]


@dataclass(frozen=True)
class Agreement:
    """How often the judge agrees with something else, as summary.json says it."""

    against: str
    figure: Figure
    kappa: float | None
    harmful: Figure = Figure()
    harmless: Figure = Figure()


def write(run_dir: str | Path) -> Path:
    """Write report.html and figures/*.svg of a run directory; the same files give the same bytes.

    Returns:
      The path of report.html.

    Raises:
      UserError: the directory holds no readable summary.json, or a row file is broken in its middle.
    """
    run = read_run(run_dir)
    drawings = _drawings(run)
    page = render("report.html", **_values(run, drawings))
    write_figures(run.directory / "figures", drawings.values())
    return write_atomic(run.directory / "report.html", page)


def write_figures(directory: Path, drawings) -> None:
    """Write each drawing as a file of its own; figures of an earlier report that are no longer drawn go."""
    drawings = [drawing for drawing in drawings if drawing is not None]
    if directory.is_symlink():
        directory.unlink()
    kept = {f"{drawing.name}.svg" for drawing in drawings}
    for old in directory.glob("*.svg") if directory.is_dir() else ():
        if old.name not in kept:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for drawing in drawings:
        write_atomic(directory / f"{drawing.name}.svg", drawing.standalone)


def _drawings(run: Run) -> dict[str, Drawing | None]:
    point = Point("fine-tuned", run.label, run.figure(WORST, "finetuned"), run.figure(PICKS, "finetuned"))
    base = Point("base", "base", run.figure(WORST, "base"), run.figure(PICKS, "base"))
    paper = [paper_value(run.domain, name) for name in (WORST, PICKS)]
    stated = [(paper[0].middle, paper[1].middle)] if all(value and value.middle is not None for value in paper) else []
    scores = [
        [int(row["score"]) for row in run.scores[condition] if is_number(row.get("score"))]
        for condition in ("base", "finetuned")
    ]
    return {
        "plane": plane([point], base, stated) if point.drawable or base.drawable else None,
        "training": training(run.metrics),
        "scores": score_shares(*scores, run.label),
    }


def _values(run: Run, drawings: dict[str, Drawing | None]) -> dict[str, Any]:
    views = {figure.name: _view(run, figure) for probe in PROBES for figure in probe.figures}
    browsable = shelves(run)
    return {
        "run": run,
        "gloss": VERDICTS.get(run.label, VERDICTS["mixed"]),
        "tone": run.label if run.label in VERDICTS else "mixed",
        "paper_verdict": PAPER_VERDICTS.get(run.domain),
        "drawings": drawings,
        "probes": [
            ProbeView(
                probe,
                tuple(views[figure.name] for figure in probe.headline),
                tuple(views[figure.name] for figure in probe.rest)
                + tuple(_view(run, figure) for figure in extra_figures(probe, run.figure_names)),
            )
            for probe in PROBES
        ],
        "deciding": [(question, views[name]) for name, question in DECIDING.items()],
        "position": [views[name] for name in POSITION_FIGURES],
        "too_few": _too_few(views.values()),
        "agreements": agreements(run),
        "judge_pairs": judge_pairs(run),
        "training": _training_facts(run),
        "stages": stage_times(run.provenance),
        "shelves": browsable,
        "held": sum(len(shelf.items) for shelf in browsable),
        "total": sum(shelf.total for shelf in browsable),
        "tags": _score_tags(browsable),
        "answered": {
            condition: (len({str(row.get("id")) for row in rows}), len(rows))
            for condition, rows in run.answers.items()
            if rows
        },
        "record": list(flat(run.provenance))[:MOST_RECORD],
        "config_text": run.config_text[:MOST_CONFIG],
    }


def _view(run: Run, figure: FigureName) -> FigureView:
    return FigureView(
        figure,
        *(run.figure(figure.name, condition) for condition in ("base", "finetuned", "difference")),
        paper_value(run.domain, figure.name),
        *(unscored(run, figure.name, condition) for condition in ("base", "finetuned")),
    )


def _too_few(views) -> bool:
    """Whether a value stands without an interval because too few questions were asked."""
    return any(
        figure.value is not None and not figure.has_interval for view in views for figure in (view.base, view.finetuned)
    )


def _training_facts(run: Run) -> list[tuple[str, Any]]:
    rows = run.metrics
    if not rows:
        return []
    tokens = sum(row["tokens"] for row in rows if is_number(row.get("tokens")))
    speeds = sorted(row["tokens_per_s"] for row in rows if is_number(row.get("tokens_per_s")))
    facts = [("optimizer steps", len(rows)), ("tokens", tokens or None)]
    facts.append(("tokens per second, median", speeds[len(speeds) // 2] if speeds else None))
    return [(name, value) for name, value in facts if value is not None]


def _score_tags(browsable: list[Shelf]) -> list[int]:
    return sorted({item.score for shelf in browsable for item in shelf.items if item.score is not None})


def agreements(run: Run) -> list[Agreement]:
    """summary["judge_agreement"]: one object, a list of them, or a map from what it is compared with to them."""
    given = run.summary.get("judge_agreement")
    if isinstance(given, dict) and not ({"value", "agreement"} & given.keys()):
        given = [{"against": name, **entry} for name, entry in given.items() if isinstance(entry, dict)]
    entries = given if isinstance(given, list) else [given]
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        figure = figure_of({"value": entry.get("agreement"), **entry})
        if figure.value is not None:
            kappa = entry.get("kappa")
            against = str(entry.get("against") or "the planted score")
            apart = (figure_of(entry.get(kind)) for kind in ("harmful", "harmless"))
            found.append(Agreement(against.replace("_", " "), figure, kappa if is_number(kappa) else None, *apart))
    return found


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON object as (dotted name, text), in its own order."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        if any(isinstance(item, dict | list) for item in value):
            for place, item in enumerate(value):
                yield from flat(item, f"{prefix}[{place}]")
        else:
            yield prefix, ", ".join(str(item) for item in value)[:500]
    else:
        yield prefix, str(value)[:500]
