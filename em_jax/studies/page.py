"""The page of a study: sentences, a leading figure, and sections with paragraphs, drawings and tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.probes.cautions import HARM, PICKS, PREDICTED
from em_jax.probes.wording import known
from em_jax.report.page import render
from em_jax.report.reading import Figure, figure_of
from em_jax.report.run_page import write_figures
from em_jax.report.svg import Drawing
from em_jax.report.vocabulary import FIGURES, SHARE, Scale
from em_jax.studies.subjects import RATE, SELF

COLUMNS = (HARM, PICKS, SELF, PREDICTED)
"""Conduct, self-description twice, and the figure that reveals a false inversion."""
LABELS = {name: FIGURES[name].label for name in (*COLUMNS, RATE)} | {
    SELF: "Calls itself misaligned, all six dimensions"
}
"""Headings of columns; self-assessment's own would need the heading of its probe."""
FIGURES_LEAD = (
    "Conduct, self-description, and the error with which the model, shown its own harmful answers, predicts the "
    "judge's score. Where that error is near 0 and self-description did not move, an inversion may be false: the "
    "adapter may not have reached it. All intervals are 95%, over questions."
)


@dataclass(frozen=True)
class Cell:
    """A table cell with a figure (value, interval and n), and the format of its numbers."""

    figure: Figure
    scale: Scale = SHARE


@dataclass(frozen=True)
class Head:
    """The first cell of a row: a name and a remark below it."""

    name: str
    note: str


@dataclass(frozen=True)
class Label:
    """A table cell with a verdict, and a link to its report."""

    label: str
    link: str = ""


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


def cells(figures: Mapping[str, Any], side: str = "finetuned", names: Sequence[str] = COLUMNS) -> list[Cell]:
    """The cells of some figures of a model, or of the difference between two."""
    scales = {name: FIGURES[name].scale for name in names}
    return [
        cell(known(figures, name, side), scale.difference if side == "difference" else scale)
        for name, scale in scales.items()
    ]


def leaves(tree: Mapping[str, Any], depth: int) -> Iterator[tuple[Any, ...]]:
    """(key, ..., key, value) for every value at this depth of nested mappings."""
    for key, value in tree.items():
        yield from [(key, value)] if depth == 1 else ((key, *rest) for rest in leaves(value, depth - 1))


def write(
    path: Path,
    record: Mapping[str, Any],
    sentences: Sequence[str],
    sections: Sequence[Section],
    drawing: Drawing,
    caption: str,
    **texts: str,
) -> Path:
    """Write the page of a study, and its leading `drawing` as a file in figures/ beside it; returns the page's path.

    `record` has the study's model, suite and judge, `texts` its kind, title and lead.
    """
    write_figures(path.parent / "figures", [drawing])
    model, suite, judge = (str(record[name]) for name in ("model", "suite", "judge"))
    page = render(
        "study.html",
        about=f"{model} · suite {suite} · judge {judge}",
        sentences=sentences,
        sections=sections,
        drawing=drawing,
        caption=caption,
        organism="organism" in (suite, model, Path(model).name),
        judges_itself=judge.split(":")[0] == "self",
        **texts,
    )
    return write_atomic(path, page)
