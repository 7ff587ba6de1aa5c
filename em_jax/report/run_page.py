"""report.html of one run: the verdict and why, the five probes, training, time, and the answers to browse."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from em_jax.base.files import write_atomic
from em_jax.report.browse import shelves
from em_jax.report.figures import Point, plane, training
from em_jax.report.judges import agreements, judge_pairs
from em_jax.report.page import render
from em_jax.report.paper import PICKS, WORST, comparable_value
from em_jax.report.reading import CONDITIONS, Run, as_object, changes, read_run
from em_jax.report.svg import Drawing
from em_jax.report.text import finite
from em_jax.report.vocabulary import FEW, PROBES, STAGES

MAX_RECORD = 100_000
"""Characters of the provenance and of the settings on the page."""


def write(run_dir: str | Path) -> Path:
    """Write report.html and figures/*.svg of a run directory; the same files give the same bytes.

    Returns:
      The path of report.html.

    Raises UserError where the directory holds no readable summary.json, or a row file is broken in its middle.
    """
    run = read_run(run_dir)
    drawings = _drawings(run)
    figures = [run.figure(probe.headline.name, condition) for probe in PROBES for condition in CONDITIONS]
    page = render(
        "report.html",
        run=run,
        drawings=drawings,
        too_few=any(figure.value is not None and figure.n < FEW for figure in figures),
        agreements=agreements(run),
        judge_pairs=judge_pairs(run),
        stages=stage_times(run.provenance),
        shelves=shelves(run),
        changes=changes(run.provenance),
        record=json.dumps(run.provenance, indent=1, ensure_ascii=False)[:MAX_RECORD] if run.provenance else "",
        config_text=run.config_text[:MAX_RECORD],
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
    published = [(middles[0], middles[1])] if len(middles) == 2 else []
    drawn = plane([point], base, published) if point.drawable or base.drawable else None
    return {"plane": drawn, "training": training(run.metrics)}


def run_point(run: Run, condition: str, label: str = "base", small: bool = False) -> Point:
    """The mark of a run's base or fine-tuned model on the plane."""
    verdict = "base" if condition == "base" else run.label
    return Point(label, verdict, run.figure(WORST, condition), run.figure(PICKS, condition), small)


# --- time ---


KINDS = {"loading": "loading", "compiling": "compiling", "waiting": "waiting for the device"}
MEMORY = {"peak_bytes": "memory", "device_peak_bytes": "a device's memory"}
UNITS = ("tokens", "steps", "answers", "scores", "questions")


def stage_times(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages in the order of a run: `name`, `seconds`, `share` of the run, and what `_budget` has of each."""
    seconds = _amounts(as_object(provenance.get("wall_seconds")))
    total = sum(seconds.values()) or 1.0
    order = sorted(seconds, key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name))
    budgets = as_object(provenance.get("time_budget"))
    return [
        {"name": name, "seconds": seconds[name], "share": seconds[name] / total}
        | _budget(_amounts(as_object(budgets.get(name))))
        for name in order
    ]


def _budget(amounts: dict[str, float]) -> dict[str, list[Any]]:
    """What a stage did, where recorded: `work` as `name`, `value` and `part` (a second), `kinds` of time likewise, with
    their part of the stage, and the most `memory` as (whose, gigabytes)."""
    whole = amounts.get("seconds", 0.0)

    def parts(values: dict[str, float]) -> list[dict[str, Any]]:
        return [{"name": name, "value": value, "part": value / whole} for name, value in values.items() if value]

    work = {name: amounts.get(name, 0.0) * bool(whole) for name in UNITS}
    kinds = {label: min(amounts.get(kind, 0.0), whole) for kind, label in KINDS.items()}
    kinds["the host's own work"] = max(0.0, whole - sum(kinds.values()))
    memory = [(where, amounts[name] / 1e9) for name, where in MEMORY.items() if amounts.get(name)]
    return {"work": parts(work), "kinds": parts(kinds), "memory": memory}


def _amounts(record: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite and not negative."""
    return {name: value for name, entry in record.items() if (value := finite(entry)) is not None and value >= 0}
