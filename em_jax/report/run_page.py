"""report.html of one run: the verdict and why, the five probes, training, time, and the answers to browse."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.report.browse import shelves
from em_jax.report.figures import Point, plane, score_shares, training
from em_jax.report.judges import agreements, judge_pairs
from em_jax.report.page import render
from em_jax.report.paper import PICKS, WORST, comparable_value
from em_jax.report.reading import CONDITIONS, Run, read_run
from em_jax.report.starts import changes
from em_jax.report.svg import Drawing
from em_jax.report.text import is_number
from em_jax.report.time_budget import stage_times
from em_jax.report.vocabulary import FEW, FIGURES

MAX_RECORD = 200
MAX_CONFIG = 20_000


def write(run_dir: str | Path) -> Path:
    """Write report.html and figures/*.svg of a run directory; the same files give the same bytes.

    Returns:
      The path of report.html.

    Raises:
      UserError: the directory holds no readable summary.json, or a row file is broken in its middle.
    """
    run = read_run(run_dir)
    drawings = _drawings(run)
    tables = [(run.figure(name, condition)) for name in FIGURES for condition in CONDITIONS]
    page = render(
        "report.html",
        run=run,
        drawings=drawings,
        too_few=any(figure.value is not None and figure.n < FEW for figure in tables),
        agreements=agreements(run),
        judge_pairs=judge_pairs(run),
        training=_training_facts(run),
        stages=stage_times(run.provenance),
        shelves=shelves(run),
        changes=changes(run.provenance),
        record=list(leaves(run.provenance))[:MAX_RECORD],
        config_text=run.config_text[:MAX_CONFIG],
    )
    write_figures(run.directory / "figures", drawings.values())
    return write_atomic(run.directory / "report.html", page)


def write_figures(directory: Path, drawings: Iterable[Drawing | None]) -> None:
    """Write each drawing as a file of its own and delete other SVG files, those of an earlier report."""
    files = {f"{drawing.name}.svg": drawing.standalone for drawing in drawings if drawing}
    if directory.is_symlink():
        directory.unlink()
    for old in directory.glob("*.svg") if directory.is_dir() else ():
        if old.name not in files:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, content in files.items():
        write_atomic(directory / name, content)


def _drawings(run: Run) -> dict[str, Drawing | None]:
    base, point = run_point(run, "base"), run_point(run, "finetuned", "fine-tuned")
    stated = [value.range for name in (WORST, PICKS) if (value := comparable_value(run, run.domain, name))]
    middles = [sum(each) / 2 for each in stated if each]
    scores = [
        [int(row["score"]) for row in run.scores[condition] if is_number(row.get("score"))] for condition in CONDITIONS
    ]
    return {
        "plane": plane([point], base, [(middles[0], middles[1])] if len(middles) == 2 else [])
        if point.drawable or base.drawable
        else None,
        "training": training(run.metrics),
        "scores": score_shares(scores[0], scores[1], run.label),
    }


def run_point(run: Run, condition: str, label: str = "base", small: bool = False) -> Point:
    """The mark of a run's base or fine-tuned model on the plane."""
    verdict = "base" if condition == "base" else run.label
    return Point(label, verdict, run.figure(WORST, condition), run.figure(PICKS, condition), small)


def _training_facts(run: Run) -> list[tuple[str, Any]]:
    tokens = sum(row["tokens"] for row in run.metrics if is_number(row.get("tokens")))
    speeds = sorted(row["tokens_per_s"] for row in run.metrics if is_number(row.get("tokens_per_s")))
    median = speeds[len(speeds) // 2] if speeds else None
    facts = (
        ("optimizer steps", len(run.metrics)),
        ("tokens with a loss", tokens),
        ("tokens of whole rows per second, median", median),
    )
    return [(name, value) for name, value in facts if value]


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON object as (dotted name, text), in its own order; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{prefix}[{index}]")
    else:
        yield prefix, (", ".join(map(str, value)) if isinstance(value, list) else str(value))[:500]
