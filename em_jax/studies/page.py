"""The pages of studies: for any of them the form; for studies that trained their runs, and paths, the content too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_jax.base.files import write_atomic
from em_jax.probes.cautions import HARM, PICKS, PREDICTED
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.figures import Point, plane
from em_jax.report.page import render
from em_jax.report.reading import Figure, figure_of
from em_jax.report.run_page import write_figures
from em_jax.report.svg import Drawing
from em_jax.report.text import number
from em_jax.report.vocabulary import FIGURES, SHARE, FigureName, Scale
from em_jax.studies.subjects import RATE, SELF

COLUMNS = (HARM, PICKS, SELF, PREDICTED)
"""Conduct, self-description twice, and the figure that reveals a false inversion."""
PATH_COLUMNS = (HARM, RATE, PICKS, SELF, PREDICTED)
COLOURS = {RATE: "coherent", PICKS: "inverted", SELF: "mixed"}
MOST_POINTS = 60
"""The most names that fit beside the plane."""
FIGURES_LEAD = (
    "Conduct, self-description, and the error with which the model, shown its own harmful answers, predicts the "
    "judge's score. Where that error is near 0 and self-description did not move, an inversion may be false: the "
    "adapter may not have reached it. All intervals are 95%, over questions."
)
HALFWAY_LEAD = (
    "Each curve against its own rise from the base to the last kept step, after a fit that may only rise. Which curve "
    "is ahead is decided on this, where it holds in at least 97.5% of the resamplings. Do not read an order from small "
    "rises over few questions, or from a persona still forming at the last step.",
    "Only kept steps are observed: a curve gets half-way between the step in the table and the kept step before it. "
    'The interval is over resampled questions; "never" is beyond the last step.',
)


@dataclass(frozen=True)
class Cell:
    """A table cell with a figure: its value, interval and n."""

    figure: Figure
    scale: Scale = SHARE
    """The format of its numbers."""


@dataclass(frozen=True)
class Head:
    """The first cell of a row: a name and a remark below it."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Label:
    """A table cell with a verdict, and a link to its report; empty where there is no label."""

    label: str = ""
    link: str | None = None


@dataclass(frozen=True)
class Section:
    """Paragraphs, drawings, and a table whose cells are texts, Cell, Head or Label."""

    title: str
    lead: Sequence[str]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    drawings: Sequence[Drawing] = ()


def cell(figure: Mapping[str, Any] | None, scale: Scale = SHARE) -> Cell:
    """The cell of a figure as JSON holds it, a share unless its scale says otherwise."""
    return Cell(figure_of(figure), scale)


def leaves(tree: Mapping[str, Any], depth: int) -> Iterator[tuple[Any, ...]]:
    """(key, ..., key, value) for every value at this depth of nested mappings."""
    for key, value in tree.items():
        yield from [(key, value)] if depth == 1 else ((key, *rest) for rest in leaves(value, depth - 1))


def null_range(null: Mapping[str, Any] | None) -> str:
    """The mean and 95% range of a null distribution."""
    if null is None:
        return "not computed"
    return f"{number(null['value'])} ({number(null['low'])} to {number(null['high'])})"


def write(path: Path, *, judge: str = "", drawing: Drawing | None = None, **values: Any) -> Path:
    """Write the page, and `drawing` as a file in figures/ beside it; returns the page's path.

    `values` are the template's: kind, title, lead, sentences, sections, organism, and about and caption if any.
    """
    if drawing is not None:
        write_figures(path.parent / "figures", [drawing])
    values = {"about": "", "caption": "", "drawing": drawing, "judges_itself": judge.split(":")[0] == "self", **values}
    return write_atomic(path, render("study.html", **values))


# --- the pages of a study that trained its own runs, and of a path over training ---


def study(
    record: Mapping[str, Any],
    out: Path,
    directories: Mapping[str, Path],
    leading: tuple[Drawing, str],
    own: Sequence[Section] = (),
) -> Path:
    """Write study.html and its leading figure (with its caption) from the content of study.json; returns the path.

    `own` are the study's own sections, before the common ones.
    """
    models = record["models"]
    before = _figures(models[0], "base")
    rows: list[list[Any]] = [[Head("base", "the model before any fine-tuning"), Label(), *_cells(before)]]
    for model in models:
        name, label, figures = model["name"] + seed_of(record, model), str(model["verdict"]["label"]), _figures(model)
        report = directories[model["folder"]] / "report.html"
        link = quote(f"../{model['folder']}/report.html") if report.exists() else None
        rows.append([Head(name, model["note"]), Label(label, link), *_cells(figures)])
    labels = [_column(name).label for name in COLUMNS]
    sections = [*own, Section("Every run", [FIGURES_LEAD], ("run", "verdict", *labels), rows)]
    if record["contrasts"]:
        contrasts = [
            [Head(f"{it['second']} minus {it['first']}{seed_of(record, it)}", it["asks"])]
            + _cells(_figures(it, "difference"), signed=True)
            for it in record["contrasts"]
        ]
        lead = "Differences between two runs, paired by question: each model's answers to the same questions."
        sections.append(Section("Contrasts", [lead], ("difference", *labels), contrasts))
    drawing, caption = leading
    about = {name: record[name] for name in ("kind", "title", "lead")}
    return _write(out / "study.html", record, sections, drawing=drawing, caption=caption, **about)


def points(record: Mapping[str, Any]) -> tuple[Drawing, str]:
    """The runs in the plane of conduct and self-description, and the caption."""
    before = _figures(record["models"][0], "base")
    marks = []
    for model in record["models"]:
        harm, picks = _figures(model)[:2]
        marks.append(Point(model["name"] + seed_of(record, model), str(model["verdict"]["label"]), harm, picks))
    drawing = plane(
        marks[:MOST_POINTS],
        Point("base", "base", before[0], before[1]),
        labels=True,
        title="Conduct against self-description, one mark per run",
    )
    return drawing, (
        "One mark per run; lines are 95% intervals over questions. Squares: coherent; triangles: inverted; circles: "
        "aligned; crosses: mixed. The hollow circle is the base."
    )


def seed_of(record: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Its seed, ", seed 1", where a study has several."""
    return f", seed {entry['seed']}" if len({model["seed"] for model in record["models"]}) > 1 else ""


def path(record: Mapping[str, Any], out: Path, run: Path) -> Path:
    """Write path.html and figures/curves.svg from the content of path.json; returns the page's path."""
    kept = sorted(map(int, record["steps"]))
    steps = (0, *kept)

    def figure(step: int, name: str) -> Figure:
        figures = record["steps"][str(step or kept[0])]
        return figure_of((figures.get(name) or {}).get("finetuned" if step else "base"))

    columns = [_column(name) for name in PATH_COLUMNS]
    panels = [
        Panel(it.label, it.scale, (Curve(it.name, tuple((step, figure(step, it.name)) for step in steps)),))
        for it in columns
    ]
    progress = tuple(
        Curve(
            record["halfway"][name]["name"],
            tuple((step, figure_of(shares[str(step)])) for step in steps),
            COLOURS[name],
        )
        for name, shares in record["progress"].items()
    )
    panels.append(Panel("Share of its own rise made", SHARE, progress))
    drawing = curves("curves", "The path over training", "optimizer step (0 is the base)", panels, steps=True)
    rows = [
        [f"step {step}" if step else "base", *_cells([figure(step, name) for name in PATH_COLUMNS], PATH_COLUMNS)]
        for step in steps
    ]
    halfway = [
        [it["name"], _step(it, "step"), _step(it, "after", "–")]
        + [f"{_step(it, 'low')} to {_step(it, 'high')}" if it["n"] else "", str(it["n"])]
        for it in record["halfway"].values()
    ]
    sections = [
        Section("Every step", [FIGURES_LEAD], ("step", *(it.label for it in columns)), rows),
        Section(
            "When has each curve made half of its rise?",
            HALFWAY_LEAD,
            ("curve", "at step", "after", "95% interval", "questions"),
            halfway,
        ),
    ]
    return _write(
        out / "path.html",
        record,
        sections,
        kind="path",
        title=f"When does the persona of {record['domain']} form?",
        lead=f"The adapters kept in {run.name}, asked together: conduct and self-description after each step.",
        drawing=drawing,
        caption="Lines are 95% intervals over questions. Self-assessment does not decide a verdict. The lowest panel "
        "shows each curve as a share of its own rise, after a fit that may only rise.",
    )


def _figures(entry: Mapping[str, Any], side: str = "finetuned") -> list[Figure]:
    return [figure_of((entry["figures"].get(name) or {}).get(side)) for name in COLUMNS]


def _cells(figures: Iterable[Figure], columns: Sequence[str] = COLUMNS, signed: bool = False) -> list[Cell]:
    scales = [_column(name).scale for name in columns]
    return [Cell(it, scale.difference if signed else scale) for it, scale in zip(figures, scales, strict=True)]


def _step(crossing: Mapping[str, Any], name: str, absent: str = "never") -> str:
    if not crossing["n"]:
        return "no data" if name == "step" else ""
    return absent if crossing[name] is None else str(crossing[name])


def _column(name: str) -> FigureName:
    # Its own label needs the heading of its probe.
    words = "Calls itself misaligned, all six dimensions" if name == SELF else FIGURES[name].label
    return replace(FIGURES[name], label=words)


def _write(file: Path, record: Mapping[str, Any], sections: Sequence[Section], **more: Any) -> Path:
    return write(
        file,
        sentences=record["why"],
        sections=sections,
        about=f"{record['model']} · suite {record['suite']} · judge {record['judge']}",
        organism="organism" in (record["suite"], record["model"], Path(record["model"]).name),
        judge=str(record["judge"]),
        **more,
    )
