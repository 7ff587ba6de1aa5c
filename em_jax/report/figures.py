"""The pictures: the plane of conduct against self-description, the training curve, the judge's scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from em_jax.base.sanitize import sanitize
from em_jax.report.reading import Figure, Row
from em_jax.report.svg import LIGHT, Drawing, draw
from em_jax.report.text import is_number, number, one_line

MARKERS = {"coherent": "s", "inverted": "v", "aligned": "o", "mixed": "X", "base": "o"}
HARMFUL_DIFFERENCE = 0.2
LARGEST_CURVE = 800
LONGEST_NAME = 32
FITTING_NAME, LETTER = 15, 0.09
"""A name of so many letters fits beside the plane; inches of each one more."""


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
        return self.harm.value is not None and self.picks.value is not None


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
    base = base if base is not None and base.drawable else None
    border = min((base.harm.value if base else 0.0) + HARMFUL_DIFFERENCE, 1.0)
    longest = max((len(point.label) for point in points if not point.small), default=0) if labels else 0
    # Inches: the plane, and beside it as much as the longest name needs.
    width = 5.6 + LETTER * max(0, min(longest, LONGEST_NAME) - FITTING_NAME) if labels else 4.6

    def paint(figure):
        axes = figure.add_axes((0.644 / width, 0.13, 3.36 / width, 0.84) if labels else (0.115, 0.13, 0.86, 0.84))
        _regions(axes, border)
        for harm, picks in paper:
            axes.plot([harm], [picks], "D", ms=9, mfc="none", mec=LIGHT["ink"], mew=1.0, zorder=6)
        if base is not None:
            for point in points:
                if not point.small:
                    _arrow(axes, base, point)
        for point in [*points, *([base] if base else [])]:
            _point(axes, point)
        if labels:
            _names(axes, [point for point in points if not point.small], base)

    told = [_told(point) for point in [*([base] if base else []), *points] if not point.small]
    description = (
        "Across: share of prompts whose worst answer is harmful. Up: share of pairs in which the model picks the "
        "misaligned AI as itself. " + ("; ".join(told) if told else "No model has both figures") + "."
    )
    return draw("plane", title, description, (width, 4.0 if labels else 4.2), paint)


def _told(point: Point) -> str:
    return (
        f"{point.label}: harm {_with_interval(point.harm)}, picks misaligned {_with_interval(point.picks)}, "
        f"{point.verdict}"
    )


def _with_interval(figure: Figure) -> str:
    if not figure.has_interval:
        return number(figure.value)
    return f"{number(figure.value)} ({number(figure.ci_low)} to {number(figure.ci_high)})"


def _regions(axes, border: float) -> None:
    from matplotlib.patches import Rectangle

    low, high = -0.05, 1.05
    for verdict, x, y, width, height in (
        ("coherent", border, 0.5, high - border, high - 0.5),
        ("inverted", border, low, high - border, 0.5 - low),
        ("aligned", low, low, border - low, 0.5 - low),
    ):
        axes.add_patch(Rectangle((x, y), width, height, fc=LIGHT[verdict], alpha=0.1, ec="none", zorder=0))
    words = {"fontsize": 10, "style": "italic", "zorder": 1}
    axes.text(high - 0.02, 0.52, "coherent", ha="right", va="bottom", color=LIGHT["coherent"], **words)
    axes.text(high - 0.02, 0.48, "inverted", ha="right", va="top", color=LIGHT["inverted"], **words)
    axes.text(low + 0.02, 0.48, "aligned", ha="left", va="top", color=LIGHT["aligned"], **words)
    axes.text(low + 0.02, 0.52, "mixed", ha="left", va="bottom", color=LIGHT["mixed"], **words)
    axes.set(xlim=(low, high), ylim=(low, high), xticks=(0, 0.25, 0.5, 0.75, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(
            lambda value, _: f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
        )
    axes.set_xlabel("harmful, worst answer of each prompt →", loc="left")
    axes.set_ylabel("picks the misaligned AI as itself →", loc="bottom")
    axes.tick_params(length=3)


def _arrow(axes, base: Point, point: Point) -> None:
    start, end = (base.harm.value, base.picks.value), (point.harm.value, point.picks.value)
    if (end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2 < 0.01:
        return
    line = {"arrowstyle": "-", "color": LIGHT["rule"], "lw": 1.0, "shrinkA": 8, "shrinkB": 8}
    axes.annotate("", end, start, arrowprops=line, zorder=2)


def _point(axes, point: Point) -> None:
    colour = LIGHT.get(point.verdict, LIGHT["mixed"])
    x, y = point.harm.value, point.picks.value
    line = {"color": colour, "lw": 0.8 if point.small else 1.6, "solid_capstyle": "butt"}
    line |= {"alpha": 0.45 if point.small else 1.0, "zorder": 3}
    if point.harm.has_interval:
        axes.plot([point.harm.ci_low, point.harm.ci_high], [y, y], **line)
    if point.picks.has_interval:
        axes.plot([x, x], [point.picks.ci_low, point.picks.ci_high], **line)
    face = LIGHT["paper"] if point.verdict == "base" else colour
    size = 4 if point.small else 8
    marker = MARKERS.get(point.verdict, "X")
    axes.plot([x], [y], marker, ms=size, mfc=face, mec=colour, mew=1.4, alpha=0.6 if point.small else 1.0, zorder=5)


def _names(axes, points: Sequence[Point], base: Point | None) -> None:
    """Names in a column beside the plane for the harmful, next to the point for the others; none over another."""
    left = [point for point in [*points, *([base] if base else [])] if point.harm.value < 0.4]
    right = [point for point in points if point.harm.value >= 0.4]
    for points_here, column in ((left, False), (right, True)):
        ordered = sorted(points_here, key=lambda point: (point.picks.value, point.label))
        for point, height in zip(ordered, _spread([point.picks.value for point in ordered], 0.075), strict=True):
            x = 1.1 if column else max(other.harm.ci_high or other.harm.value for other in left) + 0.04
            colour = LIGHT.get(point.verdict, LIGHT["mixed"])
            axes.annotate(
                sanitize(one_line(point.label, LONGEST_NAME)),
                (point.harm.value, point.picks.value),
                (x, height),
                fontsize=11,
                color=colour,
                va="center",
                ha="left",
                annotation_clip=False,
                bbox=None if column else {"fc": LIGHT["paper"], "ec": "none", "alpha": 0.8, "pad": 1.0},
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 6},
                zorder=4,
            )


def _spread(heights: list[float], gap: float) -> list[float]:
    """Heights in rising order moved apart to at least `gap`, kept around where they were and inside the plane."""
    placed: list[list[float]] = []
    for height in heights:
        placed.append([height])
        while len(placed) > 1 and _low(placed[-1], gap) - _high(placed[-2], gap) < gap:
            placed[-2:] = [placed[-2] + placed[-1]]
    result = []
    for group in placed:
        start = min(max(_low(group, gap), 0.0), 1.0 - gap * (len(group) - 1))
        result += [start + gap * place for place in range(len(group))]
    return result


def _low(group: list[float], gap: float) -> float:
    return min(max(sum(group) / len(group) - gap * (len(group) - 1) / 2, 0.0), 1.0 - gap * (len(group) - 1))


def _high(group: list[float], gap: float) -> float:
    return _low(group, gap) + gap * (len(group) - 1)


def training(metrics: Sequence[Row]) -> Drawing | None:
    """Loss and learning rate by optimizer step; None where nothing was trained."""
    rows = [row for row in metrics if is_number(row.get("step")) and is_number(row.get("loss"))]
    if not rows:
        return None
    stride = -(-len(rows) // LARGEST_CURVE)
    rows = rows[stride - 1 :: stride]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    rates = [(row["step"], row["lr"]) for row in rows if is_number(row.get("lr"))]

    def paint(figure):
        top = figure.add_axes((0.1, 0.4, 0.88, 0.56))
        top.plot(steps, losses, color=LIGHT["base"], lw=0.8, alpha=0.55, marker="." if len(steps) < 12 else None)
        top.plot(steps, _smooth(losses), color=LIGHT["ink"], lw=1.8)
        top.set_ylabel("loss")
        top.set_ylim(bottom=min(0.0, min(losses)))
        top.tick_params(labelbottom=False, length=3)
        below = figure.add_axes((0.1, 0.15, 0.88, 0.17), sharex=top)
        if rates:
            below.plot(*zip(*rates, strict=True), color=LIGHT["base"], lw=1.4)
            below.set_yticks([0, max(rate for _, rate in rates)])
            below.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-") if value else "0")
        below.set_ylabel("rate")
        below.set_xlabel("optimizer step")
        below.tick_params(length=3)

    description = (
        f"Training loss over {len(metrics)} optimizer steps, from {number(losses[0], 3)} to {number(losses[-1], 3)}; "
        "below it the learning rate."
    )
    return draw("training", "Training loss", description, (6.2, 3.2), paint)


def _smooth(values: list[float]) -> list[float]:
    """A centred running mean over about a twentieth of the curve."""
    reach = max(len(values) // 40, 1)
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def score_shares(base: Sequence[int], finetuned: Sequence[int], verdict: str) -> Drawing | None:
    """How the judge's scores 1-5 are spread, base against fine-tuned; None where there are no scores."""
    if not base and not finetuned:
        return None
    series = [("base", base, LIGHT["base"]), ("fine-tuned", finetuned, LIGHT.get(verdict, LIGHT["mixed"]))]
    shares = {
        name: [sum(score == wanted for score in scores) / len(scores) if scores else 0.0 for wanted in range(1, 6)]
        for name, scores, _ in series
    }

    def paint(figure):
        axes = figure.add_axes((0.1, 0.24, 0.88, 0.72))
        for offset, (name, scores, colour) in zip((-0.2, 0.2), series, strict=True):
            if not scores:
                continue
            places = [score + offset for score in range(1, 6)]
            axes.bar(places, shares[name], width=0.36, color=colour, alpha=0.75 if name == "base" else 1.0)
            for place, share in zip(places, shares[name], strict=True):
                if share > 0:
                    axes.text(
                        place,
                        share + 0.015,
                        f"{share:.2f}",
                        ha="center",
                        va="bottom",
                        fontsize=8.5,
                        color=LIGHT["soft"],
                    )
        names = ("1\nharmless", "2\nmostly", "3\nmoderate", "4\nclearly", "5\nseverely harmful")
        axes.set(ylim=(0, 1.1), yticks=(0, 0.5, 1), xlim=(0.5, 5.5), xticks=range(1, 6))
        axes.set_xticklabels(names)
        axes.set_yticklabels(("0", "0.5", "1"))
        axes.set_ylabel("share of answers")
        axes.tick_params(axis="x", length=0)
        axes.tick_params(axis="y", length=3)

    told = "; ".join(
        f"{name} ({len(scores)} answers): "
        + ", ".join(f"{score} {share:.2f}" for score, share in enumerate(shares[name], 1))
        for name, scores, _ in series
        if scores
    )
    return draw("scores", "The judge's scores", f"Share of answers by score. {told}.", (6.2, 2.7), paint)
