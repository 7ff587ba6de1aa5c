"""Curves of figures with their 95% intervals: over optimizer steps, or by the dose of a direction."""

from collections.abc import Sequence
from dataclasses import dataclass

from em_jax.report.reading import Figure
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.text import number
from em_jax.report.vocabulary import Scale

FRAME = 0.5
"""Inches below the panels, for the axis and its label."""
NAMES = 1.9
"""Inches beside the panels, where a panel's curves need their names."""


@dataclass(frozen=True)
class Curve:
    """A figure at rising places; in a colour of the palette."""

    name: str
    points: tuple[tuple[float, Figure], ...]
    colour: str = "ink"
    dashed: bool = False

    @property
    def known(self) -> list[tuple[float, Figure]]:
        """The points that have a value."""
        return [(at, figure) for at, figure in self.points if figure.value is not None]


@dataclass(frozen=True)
class Panel:
    """Curves on one scale, named beside it where there are several. `title` stands above."""

    title: str
    scale: Scale
    curves: tuple[Curve, ...]


def curves(
    name: str, title: str, across: str, panels: Sequence[Panel], *, height: float = 1.25, steps: bool = False
) -> Drawing:
    """Panels of `height` inches under one another; `across` says what the places are.

    `steps` are optimizer steps: they are spread as 1, 2, 4, 8 would be, 0 being the base.
    """
    size = (6.4, height * len(panels))
    beside = NAMES if any(len(panel.curves) > 1 for panel in panels) else 0.12

    def paint(figure):
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.subplots_adjust(0.09, FRAME / size[1], 1 - beside / size[0], 1 - 0.2 / size[1], hspace=0.5)
        for place, panel in zip(axes, panels, strict=True):
            _panel(place, panel)
            if not steps:
                place.axvline(0, color=LIGHT["rule"], lw=0.8, zorder=0)
        last = axes[-1]
        if steps:
            last.set_xscale("symlog", base=2, linthresh=1)
            shown = _apart(sorted({at for panel in panels for curve in panel.curves for at, _ in curve.points}))
            last.set_xticks(shown, labels=[f"{at:g}" for at in shown])
            last.minorticks_off()
        last.set_xlabel(across)

    told = "; ".join(f"{_named(panel, curve)}: {_told(curve)}" for panel in panels for curve in panel.curves)
    return draw(name, title, f"{title}, by {across}. {told}.", size, paint)


def _panel(axes, panel: Panel) -> None:
    low, high = panel.scale.low, panel.scale.high
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_yticks([low, (low + high) / 2, high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=LIGHT["soft"], pad=3)
    axes.tick_params(length=3)
    if panel.scale.mark is not None:
        axes.axhline(panel.scale.mark, color=LIGHT["rule"], lw=0.8, zorder=1)
    if not any(curve.known for curve in panel.curves):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=LIGHT["soft"])
        return
    for curve in panel.curves:
        known, colour = curve.known, LIGHT[curve.colour]
        style = {"color": colour, "ls": "--" if curve.dashed else "-", "lw": 1.4, "marker": "o", "ms": 3.5}
        axes.plot([at for at, _ in known], [each.value for _, each in known], label=curve.name, **style)
        for at, each in known:
            if each.has_interval:
                axes.plot([at, at], [each.ci_low, each.ci_high], color=colour, lw=1.0, alpha=0.55)
    if len(panel.curves) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _apart(places: Sequence[float]) -> list[float]:
    """The places whose numbers do not run into one another."""
    shown: list[float] = []
    for at in places:
        if not shown or at >= max(shown[-1] * 1.3, shown[-1] + 1):
            shown.append(at)
    return shown


def _named(panel: Panel, curve: Curve) -> str:
    return f"{panel.title}, {curve.name}" if len(panel.curves) > 1 else panel.title


def _told(curve: Curve) -> str:
    return ", ".join(f"{at:g} {number(each.value)}" for at, each in curve.known) or "no data"
