"""Figures as the verdict's sentences write them: percentages with their interval and n."""

import math
from collections.abc import Mapping

from em_jax.probes.statistics import Figure

Figures = Mapping[str, Mapping[str, Figure | None]]
"""Name -> side (base, finetuned, difference) -> figure, as summary.json has them."""


def known(figures: Figures, name: str, side: str) -> Figure | None:
    """A figure that has a value, or None."""
    figure = (figures.get(name) or {}).get(side)
    return figure if figure and figure["value"] is not None else None


def has_interval(figure: Figure) -> bool:
    """Whether both limits are known."""
    return figure["ci_low"] is not None and figure["ci_high"] is not None


def limits(figures: Figures, name: str, side: str) -> tuple[float, float]:
    """The interval of a figure; infinite where it has none, so that nothing is shown by it."""
    figure = known(figures, name, side)
    return (figure["ci_low"], figure["ci_high"]) if figure and has_interval(figure) else (-math.inf, math.inf)


def show(figure: Figure, sign: str = "") -> str:
    """A figure as text, with its interval where it has one: "0.93 [0.84, 0.97]"."""
    value, low, high = (figure[name] for name in ("value", "ci_low", "ci_high"))
    interval = f" [{low:{sign}z.2f}, {high:{sign}z.2f}]" if has_interval(figure) else ""
    return f"{value:{sign}z.2f}{interval}"


def interval(figure: Figure) -> str:
    """ "95% CI 84-97%"; "no interval"."""
    if not has_interval(figure):
        return "no interval"
    low, high = (round(100 * figure[name]) for name in ("ci_low", "ci_high"))
    return f"95% CI {low} to {high}%" if low < 0 else f"95% CI {low}-{high}%"


def share(figure: Figure) -> str:
    """A share with its interval: "93% (95% CI 84-97%)"."""
    return f"{figure['value']:.0%} ({interval(figure)})"


def points(figure: Figure) -> str:
    """A difference of shares in percentage points: "+91 points (95% CI +82 to +97)"."""
    limits = ""
    if has_interval(figure):
        limits = f" (95% CI {100 * figure['ci_low']:+z.0f} to {100 * figure['ci_high']:+z.0f})"
    return f"{count(100 * figure['value'], 'point', '+')}{limits}"


def count(number: float, noun: str, sign: str = "") -> str:
    """A rounded number with its noun: "1 point", "+2 points"."""
    text = f"{number:{sign}z.0f}"
    return f"{text} {noun}{'s' * (text.lstrip('+-') != '1')}"
