"""Curves of figures with their 95% intervals: over optimizer steps, or by the dose of a direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_jax.report.reading import Figure
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.vocabulary import Scale

MAX_DESCRIBED = 20
"""Points of a curve up to which the text alternative has all of them."""


@dataclass(frozen=True)
class Curve:
    """(x, figure) by rising x, in a colour of the palette."""

    name: str
    points: tuple[tuple[float, Figure], ...]
    colour: str = "ink"
    dashed: bool = False

    @property
    def measured(self) -> list[tuple[float, Figure]]:
        """The points that have a value."""
        return [(x, figure) for x, figure in self.points if figure.value is not None]


@dataclass(frozen=True)
class Panel:
    """Curves on one scale under a title; several curves are named in a legend."""

    title: str
    scale: Scale
    curves: tuple[Curve, ...]


def curves(
    name: str,
    title: str,
    across: str,
    panels: Sequence[Panel],
    *,
    height: float = 1.25,
    steps: bool = False,
    markers: bool = True,
) -> Drawing:
    """Panels of `height` inches under one another over one x axis, labelled `across`.

    With `steps`, x are optimizer steps on a logarithmic axis that also holds 0, the base. Without `markers`, curves are
    plain lines.
    """
    # Inches; a legend comes beside the panels.
    width = 4.6 if any(len(panel.curves) > 1 for panel in panels) else 6.4

    def paint(figure: Any) -> None:
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(0, 0, 1, 1, hspace=0.5)
        for axes, panel in zip(all_axes, panels, strict=True):
            _paint_panel(axes, panel, markers)
            if markers and not steps:
                axes.axvline(0, color=LIGHT["rule"], lw=0.8, zorder=0)
        last = all_axes[-1]
        if steps:
            last.set_xscale("symlog", base=2, linthresh=1)
            ticks = _ticks(sorted({x for panel in panels for curve in panel.curves for x, _ in curve.points}))
            last.set_xticks(ticks, labels=[f"{x:g}" for x in ticks])
            last.minorticks_off()
        last.set_xlabel(across)

    descriptions = [_description(panel, curve) for panel in panels for curve in panel.curves]
    return draw(name, title, f"{title}, by {across}. {'; '.join(descriptions)}.", (width, height * len(panels)), paint)


def _paint_panel(axes: Any, panel: Panel, markers: bool) -> None:
    low, high = panel.scale.low, panel.scale.high
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_yticks([low, (low + high) / 2, high])
    axes.yaxis.set_major_formatter(lambda y, _: panel.scale.text(y) if panel.scale.percent else f"{y:.2g}")
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=LIGHT["soft"], pad=3)
    axes.tick_params(length=3)
    if panel.scale.mark is not None:
        axes.axhline(panel.scale.mark, color=LIGHT["rule"], lw=0.8, zorder=1)
    if not any(curve.measured for curve in panel.curves):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=LIGHT["soft"])
        return
    for curve in panel.curves:
        colour = LIGHT[curve.colour]
        style = {"color": colour, "ls": "--" if curve.dashed else "-", "lw": 1.4}
        style |= {"marker": "o", "ms": 3.5} if markers or len(curve.measured) < 2 else {}
        xs, values = [x for x, _ in curve.measured], [figure.value for _, figure in curve.measured]
        axes.plot(xs, values, label=curve.name, **style)
        for x, figure in curve.measured:
            if figure.interval:
                axes.plot([x, x], figure.interval, color=colour, lw=1.0, alpha=0.55)
    if len(panel.curves) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _ticks(xs: Sequence[float]) -> list[float]:
    """Those of rising `xs` whose labels do not overlap."""
    ticks: list[float] = []
    for x in xs:
        if not ticks or x >= max(ticks[-1] * 1.3, ticks[-1] + 1):
            ticks.append(x)
    return ticks


def _description(panel: Panel, curve: Curve) -> str:
    name = f"{panel.title}, {curve.name}" if len(panel.curves) > 1 else panel.title
    values = [f"{x:g} {panel.scale.text(figure.value)}" for x, figure in curve.measured]
    if len(values) > MAX_DESCRIBED:
        return f"{name}: {len(values)} points from {values[0]} to {values[-1]}"
    return f"{name}: {', '.join(values) or 'no data'}"
