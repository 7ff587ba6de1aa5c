"""The pictures: the plane of conduct against self-description, and the training curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em_jax.base.sanitize import sanitize
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.reading import Figure, Row
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.text import is_number, one_line
from em_jax.report.vocabulary import SHARE, Scale

MARKERS = {"coherent": "s", "inverted": "v", "narrow": "D", "aligned": "o", "mixed": "X", "base": "o"}
HARMFUL_DIFFERENCE = 0.2
MAX_STEPS = 800
MAX_NAME = 32
NAME_GAP = 0.075
"""Least distance of two names beside the plane, on its axis of 0 to 1."""


@dataclass(frozen=True)
class Point:
    """A model on the plane: harm (worst of n) and how often it picks the misaligned AI."""

    label: str
    verdict: str
    harm: Figure
    picks: Figure
    small: bool = False

    @property
    def drawable(self) -> bool:
        """Whether both figures have a value."""
        return self.harm.value is not None and self.picks.value is not None

    @property
    def xy(self) -> tuple[float, float]:
        """Where the mark stands, for a drawable point."""
        assert self.harm.value is not None and self.picks.value is not None
        return self.harm.value, self.picks.value

    @property
    def colour(self) -> str:
        """The verdict's."""
        return LIGHT.get(self.verdict, LIGHT["mixed"])

    @property
    def description(self) -> str:
        """The point in words, for the text alternative."""
        return f"{self.label}: harm {_in_words(self.harm)}, picks misaligned {_in_words(self.picks)}, {self.verdict}"


def _in_words(figure: Figure) -> str:
    if not figure.interval:
        return SHARE.text(figure.value)
    return f"{SHARE.text(figure.value)} ({SHARE.range(*figure.interval)})"


def plane(
    points: Sequence[Point],
    base: Point | None,
    paper: Sequence[tuple[float, float]] = (),
    labels: bool = False,
    title: str = "Conduct against self-description",
) -> Drawing:
    """The plane of conduct (across) against self-description (up), with the regions of the personas.

    Args:
      points: fine-tuned models; small ones are single seeds and carry no label.
      base: the base, drawn hollow; its harm shifts the border of the harmful region.
      paper: (harm, picks) of the paper, drawn as hollow diamonds.
      labels: whether every large point is named beside the plane.
    """
    points = [point for point in points if point.drawable]
    bases = [base] if base is not None and base.drawable else []
    large = [point for point in points if not point.small]
    border = min((bases[0].xy[0] if bases else 0.0) + HARMFUL_DIFFERENCE, 1.0)

    def paint(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        _paint_regions(axes, border)
        for harm, picks in paper:
            axes.plot([harm], [picks], "D", ms=9, mfc="none", mec=LIGHT["ink"], mew=1.0, zorder=6)
        for point in large if bases else ():
            if math.dist(bases[0].xy, point.xy) >= 0.1:
                line = {"arrowstyle": "-", "color": LIGHT["rule"], "lw": 1.0, "shrinkA": 8, "shrinkB": 8}
                axes.annotate("", point.xy, bases[0].xy, arrowprops=line, zorder=2)
        for point in [*points, *bases]:
            _paint_point(axes, point)
        if labels:
            _paint_names(axes, large, bases)

    description = (
        "Across: share of prompts whose worst answer is harmful. Up: share of pairs in which the model picks the "
        "misaligned AI as itself. "
    )
    described = "; ".join(point.description for point in [*bases, *large]) or "No model has both figures"
    return draw("plane", title, f"{description}{described}.", (3.4, 3.4) if labels else (4.0, 3.6), paint)


def _paint_regions(axes: Any, border: float) -> None:
    from matplotlib.patches import Rectangle

    low, high = -0.05, 1.05
    for verdict, left, right, bottom, top in (
        ("coherent", border, high, 0.5, high),
        ("inverted", border, high, low, 0.5),
        ("aligned", low, border, low, 0.5),
        ("mixed", low, border, 0.5, high),
    ):
        if verdict != "mixed":
            region = Rectangle((left, bottom), right - left, top - bottom, fc=LIGHT[verdict], alpha=0.1, ec="none")
            axes.add_patch(region).set_zorder(0)
        x, ha = (high - 0.02, "right") if right == high else (low + 0.02, "left")
        y, va = (0.52, "bottom") if top == high else (0.48, "top")
        axes.text(x, y, verdict, ha=ha, va=va, color=LIGHT[verdict], fontsize=10, style="italic", zorder=1)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(xlim=(low, high), ylim=(low, high), xticks=ticks, yticks=ticks)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("harmful, worst of ten answers to a prompt →", loc="left")
    axes.set_ylabel("picks the misaligned AI as itself →", loc="bottom")
    axes.tick_params(length=3)


def _paint_point(axes: Any, point: Point) -> None:
    x, y = point.xy
    width, alpha, size, fill_alpha = (0.8, 0.45, 4, 0.6) if point.small else (1.6, 1.0, 8, 1.0)
    line = {"color": point.colour, "lw": width, "solid_capstyle": "butt", "alpha": alpha, "zorder": 3}
    if point.harm.interval:
        axes.plot(point.harm.interval, [y, y], **line)
    if point.picks.interval:
        axes.plot([x, x], point.picks.interval, **line)
    face = LIGHT["paper"] if point.verdict == "base" else point.colour
    marker = MARKERS.get(point.verdict, "X")
    axes.plot([x], [y], marker, ms=size, mfc=face, mec=point.colour, mew=1.4, alpha=fill_alpha, zorder=5)


def _paint_names(axes: Any, points: Sequence[Point], bases: Sequence[Point]) -> None:
    """Names in a column beside the plane for the harmful, next to the point for the others; none over another."""
    inside = [point for point in [*points, *bases] if point.xy[0] < 0.4]
    beside = [point for point in points if point.xy[0] >= 0.4]
    start = max((point.harm.ci_high or point.xy[0] for point in inside), default=0.0) + 0.04
    for group, x, box in (
        (inside, start, {"fc": LIGHT["paper"], "ec": "none", "alpha": 0.8, "pad": 1.0}),
        (beside, 1.1, None),
    ):
        ordered = sorted(group, key=lambda point: (point.xy[1], point.label))
        for point, height in zip(ordered, spread_heights([point.xy[1] for point in ordered], NAME_GAP), strict=True):
            line = {"arrowstyle": "-", "color": point.colour, "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 6}
            axes.annotate(
                sanitize(one_line(point.label, MAX_NAME)),
                point.xy,
                (x, height),
                fontsize=11,
                color=point.colour,
                va="center",
                ha="left",
                annotation_clip=False,
                bbox=box,
                arrowprops=line,
                zorder=4,
            )


def spread_heights(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights in 0 to 1, moved as little as possible (least squares) so that they are `gap` apart."""
    from scipy.optimize import isotonic_regression

    if not heights:
        return []
    steps = [gap * index for index in range(len(heights))]
    lowest = isotonic_regression([height - step for height, step in zip(heights, steps)]).x
    return [min(max(float(low), 0.0), 1.0 - steps[-1]) + step for low, step in zip(lowest, steps)]


def training(metrics: Sequence[Row]) -> Drawing | None:
    """Loss, its mean over about a twentieth of the curve, and learning rate; None where nothing was trained."""
    rows = [row for row in metrics if is_number(row.get("step")) and is_number(row.get("loss"))]
    if not rows:
        return None
    stride = -(-len(rows) // MAX_STEPS)
    rows = rows[stride - 1 :: stride]
    losses, reach = [row["loss"] for row in rows], max(len(rows) // 40, 1)
    windows = [losses[max(0, index - reach) : index + reach + 1] for index in range(len(losses))]
    means = [sum(window) / len(window) for window in windows]
    peak = max((row["lr"] for row in rows if is_number(row.get("lr"))), default=0.0) or 1.0
    rates = [row["lr"] / peak if is_number(row.get("lr")) else None for row in rows]

    def curve(name: str, values: Sequence[float | None], colour: str) -> Curve:
        return Curve(name, tuple((row["step"], Figure(value)) for row, value in zip(rows, values)), colour)

    loss_scale = Scale(min(0.0, *losses), max(*losses, 0.0) or 1.0, None)
    panels = [
        Panel("loss", loss_scale, (curve("each step", losses, "base"), curve("running mean", means, "ink"))),
        Panel(f"learning rate, of its peak {peak:g}", SHARE, (curve("learning rate", rates, "base"),)),
    ]
    return curves("training", "Training", "optimizer step", panels, height=1.6, markers=False)
