"""A run directory as the report sees it: everything read once, nothing trusted to be there but summary.json."""

import json
import tomllib
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.files import read_rows
from em_jax.report.text import is_number

CONDITIONS = ("base", "finetuned")
CHOICE_PROBES = ("self_assessment", "two_ai", "output_recognition", "score_prediction")
Row = dict[str, Any]
NAMING = ("id", "sample", "first", "format", "question", "answer_sample", "bucket", "dimension", "theme")
"""Fields of a row by which it is found or counted."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95% interval and the number of questions; value None where it is undefined."""

    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0

    @property
    def has_interval(self) -> bool:
        return self.value is not None and self.ci_low is not None and self.ci_high is not None


@dataclass(frozen=True)
class Run:
    """What one run left behind. `answers`, `scores` and `probes` are keyed by condition."""

    directory: Path
    summary: Row
    provenance: Row
    config: Row
    config_text: str
    metrics: list[Row] = field(repr=False)
    answers: dict[str, list[Row]] = field(repr=False)
    scores: dict[str, list[Row]] = field(repr=False)
    probes: dict[str, dict[str, list[Row]]] = field(repr=False)
    other_judges: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        return str(self.summary.get("domain") or "none")

    @property
    def model(self) -> str:
        return str(self.summary.get("model") or "unknown model")

    @property
    def suite(self) -> str:
        return str(self.summary.get("suite") or "unknown suite")

    @property
    def judge(self) -> str:
        return str(self.summary.get("judge") or "unknown judge")

    @property
    def label(self) -> str:
        verdict = self.summary.get("verdict")
        return str(verdict.get("label") or "mixed") if isinstance(verdict, dict) else "mixed"

    @property
    def why(self) -> list[str]:
        verdict = self.summary.get("verdict")
        why = verdict.get("why") if isinstance(verdict, dict) else None
        return [str(line) for line in why] if isinstance(why, list) else [str(why)] if why else []

    @property
    def seed(self) -> str:
        seeds = self.provenance.get("seeds")
        candidates = [self.config.get("seed"), self.provenance.get("seed")]
        candidates += [seeds.get("seed"), seeds.get("run")] if isinstance(seeds, dict) else [seeds]
        return next((str(seed) for seed in candidates if isinstance(seed, int | str)), "?")

    @property
    def is_organism(self) -> bool:
        """Whether this is the embedded calibration fixture, by its name or by its question suite."""
        return "organism" in (self.suite, self.model, Path(self.model).name)

    @property
    def judges_itself(self) -> bool:
        return self.judge.split(":")[0].strip() == "self"

    def figure(self, name: str, condition: str) -> Figure:
        """A figure of summary.json; the empty Figure where there is none. condition: base, finetuned, difference."""
        figures = self.summary.get("figures")
        entry = figures.get(name) if isinstance(figures, dict) else None
        return figure_of(entry.get(condition) if isinstance(entry, dict) else None)

    @property
    def figure_names(self) -> list[str]:
        """The names of all figures in the summary, in its order."""
        figures = self.summary.get("figures")
        return list(figures) if isinstance(figures, dict) else []

    def has(self, condition: str) -> bool:
        """Whether anything at all was measured in this condition."""
        return any(self.figure(name, condition).value is not None for name in self.figure_names)


def figure_of(entry: Any) -> Figure:
    """A Figure from its JSON object; what is missing, or no finite number, is None."""
    if not isinstance(entry, dict):
        return Figure()
    numbers = {key: entry.get(key) if is_number(entry.get(key)) else None for key in ("value", "ci_low", "ci_high")}
    questions = entry.get("n")
    return Figure(**numbers, n=int(questions) if is_number(questions) else 0)


def read_run(directory: str | Path) -> Run:
    """Read a run directory.

    Raises:
      UserError: there is no summary.json, or it is not a JSON object.
    """
    directory = Path(directory)
    summary_path = directory / "summary.json"
    if not summary_path.exists():
        raise UserError(f"{directory} holds no summary.json to report on; run its probe stage first")
    summary = _json_object(summary_path)
    if summary is None:
        raise UserError(f"{summary_path}: expected a JSON object; delete it and run the report stage again")
    config_text = _text(directory / "config.toml")
    judge = str(summary.get("judge") or "")
    scores, others = _scores(directory / "scores", judge)
    return Run(
        directory=directory,
        summary=summary,
        provenance=_json_object(directory / "provenance.json") or {},
        config=_toml(config_text),
        config_text=config_text,
        metrics=_rows(directory / "train" / "metrics.jsonl"),
        answers={condition: _rows(directory / "answers" / f"{condition}.jsonl") for condition in CONDITIONS},
        scores=scores,
        probes={
            condition: {probe: _rows(directory / "probes" / f"{condition}.{probe}.jsonl") for probe in CHOICE_PROBES}
            for condition in CONDITIONS
        },
        other_judges=others,
    )


def _scores(directory: Path, judge: str) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """The rows of the judge the summary names, and the names of judges that scored here besides.

    A judge's file carries its name made fit for a file system, so the nearest name counts.
    """
    names = sorted({path.name.split(".", 1)[1][: -len(".jsonl")] for path in directory.glob("*.*.jsonl")})
    likeness = {name: SequenceMatcher(None, name, judge).ratio() for name in names}
    chosen = max(names, key=lambda name: (name == judge, likeness[name]), default="")
    rows = {condition: _rows(directory / f"{condition}.{chosen}.jsonl") for condition in CONDITIONS}
    return rows, tuple(name for name in names if name != chosen)


def _rows(path: Path) -> list[Row]:
    """The rows of a file that can be told apart: an id, a sample or an order that is no plain value names nothing."""
    return [
        row
        for row in read_rows(path)
        if isinstance(row, dict) and not any(isinstance(row.get(name), list | dict) for name in NAMING)
    ]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _toml(text: str) -> Row:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _json_object(path: Path) -> Row | None:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
