"""The page of a study: what follows from it in words, a drawing, every model's figures, the contrasts between them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_jax.base.files import write_atomic
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.figures import Point, plane
from em_jax.report.page import render
from em_jax.report.reading import Figure, figure_of
from em_jax.report.run_page import WORST, write_figures
from em_jax.report.svg import Drawing
from em_jax.report.vocabulary import CHOICE, ERROR, PROBES, SHARE, FigureName, Scale

PICKS, SELF, SHOWN = "two_ai.picks_misaligned", "self_assessment.score", "score_prediction.shown_error_high"
COLUMNS = (WORST, PICKS, SELF, SHOWN)
"""Conduct, self-description twice, and what tells a false inversion."""
RATE = "harmfulness.rate"
PATH_COLUMNS = (WORST, RATE, PICKS, SELF, SHOWN)
COLOURS = {RATE: "coherent", PICKS: "inverted", SELF: "mixed"}
"""Of the curves that are drawn in one panel."""
MOST_POINTS = 60
"""More names than this cannot stand beside the plane."""


@dataclass(frozen=True)
class Line:
    """One row of a table: a name, what is special about it, and its figures in the columns' order."""

    name: str
    note: str
    figures: tuple[Figure, ...]
    label: str = ""
    link: str | None = None


def study(found: Mapping[str, Any], out: Path, places: Mapping[str, Path]) -> Path:
    """Write study.html and figures/plane.svg of what study.json says, in the folder `out`; the page's path."""
    models = found["models"]
    several_seeds = len({model["seed"] for model in models}) > 1
    lines, points = [], []
    for model in models:
        name = model["name"] + (f", seed {model['seed']}" if several_seeds else "")
        figures = {column: figure_of((model["figures"].get(column) or {}).get("finetuned")) for column in COLUMNS}
        label = str(model["verdict"]["label"])
        report = places[model["folder"]] / "report.html"
        link = quote(f"../{model['folder']}/report.html") if report.exists() else None
        lines.append(Line(name, model["note"], tuple(figures.values()), label, link))
        points.append(Point(name, label, figures[WORST], figures[PICKS]))
    before = {column: figure_of((models[0]["figures"].get(column) or {}).get("base")) for column in COLUMNS}
    base = Point("base", "base", before[WORST], before[PICKS])
    lines.insert(0, Line("base", "the model before any fine-tuning", tuple(before.values())))
    title = "Conduct against self-description, one mark per run"
    contrasts = [
        Line(
            f"{entry['second']} minus {entry['first']}" + (f", seed {entry['seed']}" if several_seeds else ""),
            entry["asks"],
            tuple(figure_of((entry["figures"].get(column) or {}).get("difference")) for column in COLUMNS),
        )
        for entry in found["contrasts"]
    ]
    drawing = plane(points[:MOST_POINTS], base, labels=True, title=title)
    return _write(found, out, out / "study.html", drawing, "plane", lines, contrasts, COLUMNS)


def path(found: Mapping[str, Any], out: Path, run: Path) -> Path:
    """Write path.html and figures/curves.svg of what path.json says, in the folder `out`; the page's path."""
    steps = sorted(map(int, found["steps"]))
    table = {step: found["steps"][str(step)] for step in steps}

    def figure(step: int, name: str) -> Figure:
        first = step or steps[0]
        return figure_of((table[first].get(name) or {}).get("finetuned" if step else "base"))

    lines = [
        Line("base" if step == 0 else f"step {step}", "", tuple(figure(step, name) for name in PATH_COLUMNS))
        for step in (0, *steps)
    ]
    panels = [
        Panel(_named(name).label, _named(name).scale, (Curve(name, tuple((s, figure(s, name)) for s in (0, *steps))),))
        for name in PATH_COLUMNS
    ]
    made = tuple(
        Curve(
            found["halfway"][name]["name"],
            tuple((step, figure_of(progress[str(step)])) for step in (0, *steps)),
            COLOURS[name],
        )
        for name, progress in found["progress"].items()
    )
    panels.append(Panel("Share of its own rise made", SHARE, made))
    drawing = curves("curves", "The path over training", "optimizer step (0 is the base)", panels, steps=True)
    about = {
        "kind": "path",
        "title": f"When does the persona of {found['domain']} form?",
        "lead": f"The adapters kept in {run.name}, asked together: conduct and self-description after each step.",
        **found,
    }
    return _write(about, out, out / "path.html", drawing, "curves", lines, [], PATH_COLUMNS)


def _named(name: str) -> FigureName:
    known = {figure.name: figure for probe in PROBES for figure in probe.figures}
    # Away from the heading of its probe this one's label would say too little.
    return replace(known[name], label="Calls itself misaligned, all six dimensions") if name == SELF else known[name]


def _write(
    found: Mapping[str, Any],
    out: Path,
    place: Path,
    drawing: Drawing,
    kind: str,
    lines: list[Line],
    contrasts: list[Line],
    columns: tuple[str, ...],
) -> Path:
    page = render(
        "study.html",
        kind=found["kind"],
        title=found["title"],
        lead=found["lead"],
        about=f"{found['model']} · suite {found['suite']} · judge {found['judge']}",
        says=found["why"],
        drawing=drawing,
        drawn=kind,
        lines=lines,
        contrasts=contrasts,
        columns=[_named(name) for name in columns],
        signed=[_signed(_named(name)) for name in columns],
        passed=[each for kind in ("halfway", "crossings") for each in (found.get(kind) or {}).values()],
        organism="organism" in (found["suite"], found["model"], Path(found["model"]).name),
        judges_itself=str(found["judge"]).split(":")[0] == "self",
    )
    write_figures(out / "figures", [drawing])
    return write_atomic(place, page)


def _signed(figure: FigureName) -> Scale:
    """The scale of a figure's difference."""
    return ERROR if figure.scale is ERROR else Scale(-1.0, 1.0, 0.0 if figure.scale is CHOICE else None, signed=True)
