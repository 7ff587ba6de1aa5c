"""The page of any study: a title, sentences, a drawing, and sections with tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.report.page import render
from em_jax.report.reading import Figure, figure_of
from em_jax.report.run_page import write_figures
from em_jax.report.svg import Drawing
from em_jax.report.text import number
from em_jax.report.vocabulary import SHARE, Scale


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
