"""The drawing of a path: one panel per figure, over the optimizer steps at which the adapter was kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from em_jax.report.reading import Figure
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.text import number
from em_jax.report.vocabulary import Scale

HEIGHT = 1.25
"""Inches of a panel."""


@dataclass(frozen=True)
class Curve:
    """A figure at every kept step, step 0 being the base."""

    label: str
    scale: Scale
    points: tuple[tuple[int, Figure], ...]

    @property
    def known(self) -> list[tuple[int, Figure]]:
        """The points that have a value."""
        return [(step, figure) for step, figure in self.points if figure.value is not None]


def curves(drawn: Sequence[Curve]) -> Drawing:
    """The curves under one another, with 95% intervals over questions. The steps are spread as 1, 2, 4, 8 would be."""
    steps = sorted({step for curve in drawn for step, _ in curve.points})

    def paint(figure):
        panels = figure.subplots(len(drawn), 1, sharex=True)
        figure.subplots_adjust(0.09, 0.5 / (HEIGHT * len(drawn)), 0.98, 0.97, hspace=0.5)
        for axes, curve in zip(panels, drawn, strict=True):
            _panel(axes, curve)
        last = panels[-1]
        last.set_xscale("symlog", base=2, linthresh=1)
        shown = _apart(steps)
        last.set_xticks(shown, labels=[str(step) for step in shown])
        last.minorticks_off()
        last.set_xlabel("optimizer step (0 is the base)")

    told = "; ".join(f"{curve.label}: {_told(curve)}" for curve in drawn)
    description = f"Figures after each kept optimizer step. {told}."
    return draw("curves", "The path over training", description, (6.4, HEIGHT * len(drawn)), paint)


def _panel(axes, curve: Curve) -> None:
    low, high = (-4.0, 4.0) if curve.scale.signed else (0.0, 1.0)
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_yticks([low, (low + high) / 2, high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(curve.label, loc="left", fontsize=9.5, color=LIGHT["soft"], pad=3)
    axes.tick_params(length=3)
    if curve.scale.mark is not None:
        axes.axhline(curve.scale.mark, color=LIGHT["rule"], lw=0.8, zorder=1)
    known = curve.known
    if not known:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=LIGHT["soft"])
        return
    axes.plot([step for step, _ in known], [each.value for _, each in known], "-o", color=LIGHT["ink"], lw=1.4, ms=3.5)
    for step, each in known:
        if each.has_interval:
            axes.plot([step, step], [each.ci_low, each.ci_high], color=LIGHT["ink"], lw=1.0, alpha=0.55)


def _apart(steps: Sequence[int]) -> list[int]:
    """The steps whose numbers do not run into one another."""
    shown: list[int] = []
    for step in steps:
        if not shown or step >= max(shown[-1] * 1.3, shown[-1] + 1):
            shown.append(step)
    return shown


def _told(curve: Curve) -> str:
    return ", ".join(f"step {step} {number(each.value)}" for step, each in curve.known) or "no data"
