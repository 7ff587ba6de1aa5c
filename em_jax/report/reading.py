"""A run directory as the report reads it, once. Only summary.json must exist, and any value in a file may be wrong."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_jax.base.errors import UserError
from em_jax.base.files import altered, check_own, parse_object, read_rows
from em_jax.report.text import finite

CONDITIONS = ("base", "finetuned")
CHOICE_PROBES = ("self_assessment", "two_ai", "output_recognition", "score_prediction")
Row = dict[str, Any]
NAMING = ("id", "sample", "first", "format", "question", "answer_sample", "bucket", "dimension", "theme")
"""Fields that identify a row or group rows."""
WORK_ONLY = {"train.rows_per_pass", "train.remat", "train.checkpoint_every", "train.keep_adapters", "answers.slots"}
"""Settings that change how work is done, and no figure."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95% interval and the number of questions; value None where it is undefined."""

    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """(ci_low, ci_high); None where there is no value or no interval."""
        if self.value is None or self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low, self.ci_high


@dataclass(frozen=True)
class Run:
    """What one run left behind. `answers`, `scores` and `probes` are keyed by condition.

    `altered` has sentences on rows that were changed after they were written.
    """

    directory: Path
    summary: Row
    provenance: Row
    config: Row
    config_text: str
    metrics: list[Row] = field(repr=False)
    answers: dict[str, list[Row]] = field(repr=False)
    scores: dict[str, list[Row]] = field(repr=False)
    probes: dict[str, dict[str, list[Row]]] = field(repr=False)
    other_judges: tuple[str, ...]
    altered: tuple[str, ...]
    domain: str
    model: str
    suite: str
    judge: str

    def judged(self, condition: str) -> list[Row]:
        """The answers, each with its row of scores under "judged"."""
        scores = {(str(row.get("id")), row.get("sample")): row for row in self.scores[condition]}
        never = {"reason": "never judged"}
        return [
            row | {"judged": scores.get((str(row.get("id")), row.get("sample")), never)}
            for row in self.answers[condition]
        ]

    @property
    def label(self) -> str:
        """The verdict."""
        return str(as_object(self.summary.get("verdict")).get("label") or "mixed")

    def sentences(self, name: str) -> list[str]:
        """The sentences of the verdict (`why`), or those of them that keep it from another label (`reasons`)."""
        return [str(line) for line in as_list(as_object(self.summary.get("verdict")).get(name))]

    @property
    def cautions(self) -> list[tuple[str, str]]:
        """The codes and sentences of the verdict's cautions."""
        entries = map(as_object, as_list(as_object(self.summary.get("verdict")).get("cautions")))
        return [(str(each.get("code")), str(each.get("sentence"))) for each in entries if each]

    @property
    def seed(self) -> str:
        candidates = (self.config.get("seed"), as_object(self.provenance.get("seeds")).get("run"))
        return next((str(seed) for seed in candidates if isinstance(seed, int | str)), "?")

    @property
    def made_with(self) -> dict[str, str]:
        """Settings that make another model or measurement; no seed (as in NAME-SEED/adapter), of rows the file."""
        named: dict[str, str] = {}
        for table in ("data", "mix", "adapter", "lora", "train", "answers", "probes"):
            value = self.config.get(table, "")
            inside = {f"{table}.{name}": it for name, it in value.items()} if isinstance(value, dict) else {}
            named |= {name: str(it) for name, it in (inside or {table: value}).items() if name not in WORK_ONLY}
        named["judge.harmful_at"] = str(self.summary.get("harmful_at", 4))
        start = named.get("lora.init_from", "").removesuffix("/adapter").removesuffix(f"-{self.seed}")
        return named | {"data": Path(named.get("data", "")).name, "lora.init_from": start}

    @property
    def given_adapter(self) -> str:
        """The adapter that was given instead of being trained, by the end of its path; "" where there is none."""
        return "/".join(Path(str(self.config.get("adapter") or "")).parts[-2:])

    @property
    def is_organism(self) -> bool:
        """Whether this is the embedded calibration fixture, by its name or by its question suite."""
        return "organism" in (self.suite, self.model, Path(self.model).name)

    @property
    def judges_itself(self) -> bool:
        """Whether the judge is the model itself."""
        return self.judge.split(":")[0].strip() == "self"

    @property
    def figures(self) -> Row:
        """All figures of the summary by name, in its order."""
        return as_object(self.summary.get("figures"))

    def figure(self, name: str, condition: str) -> Figure:
        """A figure of summary.json; the empty Figure where there is none. condition: base, finetuned, difference."""
        return figure_of(as_object(self.figures.get(name)).get(condition))

    def has(self, condition: str) -> bool:
        """Whether anything at all was measured in this condition."""
        return any(self.figure(name, condition).value is not None for name in self.figures)


def as_object(value: Any) -> Row:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list:
    """The value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def figure_of(entry: Any) -> Figure:
    """A Figure from its JSON object; what is missing, or no finite number, is None."""
    entry = as_object(entry)
    value, ci_low, ci_high, n = (finite(entry.get(key)) for key in ("value", "ci_low", "ci_high", "n"))
    return Figure(value, ci_low, ci_high, int(n or 0))


def read_run(directory: str | Path) -> Run:
    """Read a run directory.

    Raises UserError where there is no summary.json, or it is not a JSON object; or the directory holds a link.
    """
    directory = Path(directory)
    check_own(directory)
    summary_path = directory / "summary.json"
    if not summary_path.exists():
        raise UserError(f"{directory} holds no summary.json to report on; run its probe stage first")
    summary = parse_object(_text(summary_path))
    if not summary:
        raise UserError(f"{summary_path}: expected a JSON object; delete it and run the report stage again")
    provenance = parse_object(_text(directory / "provenance.json"))
    config_text = _text(directory / "config.toml")
    judge = str(summary.get("judge") or "")
    judges = {path.name.split(".", 1)[1].removesuffix(".jsonl") for path in (directory / "scores").glob("*.*.jsonl")}
    return Run(
        directory=directory,
        summary=summary,
        provenance=provenance,
        config=_toml(config_text),
        config_text=config_text,
        metrics=_rows(directory / "train" / "metrics.jsonl"),
        answers={condition: _rows(directory / "answers" / f"{condition}.jsonl") for condition in CONDITIONS},
        scores={condition: _rows(directory / "scores" / f"{condition}.{judge}.jsonl") for condition in CONDITIONS},
        probes={
            condition: {probe: _rows(directory / "probes" / f"{condition}.{probe}.jsonl") for probe in CHOICE_PROBES}
            for condition in CONDITIONS
        },
        other_judges=tuple(sorted(judges - {judge})),
        altered=tuple(altered(directory, provenance.get("sealed"))[0]),
        domain=str(summary.get("domain") or "none"),
        **{key: str(summary.get(key) or f"unknown {key}") for key in ("model", "suite", "judge")},
    )


def _rows(path: Path) -> list[Row]:
    """The rows of a file without those that have a list or an object where they should be identified."""
    return [row for row in read_rows(path) if not any(isinstance(row.get(name), list | dict) for name in NAMING)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _toml(text: str) -> Row:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def changes(provenance: dict[str, Any]) -> list[str]:
    """A sentence for each start, of those on record, that ran with something else than the one before it."""
    records = [as_object(start) for start in as_list(provenance.get("starts"))]
    if not records:
        return []
    records[-1] = {**provenance, "time": records[-1].get("time")}  # the latest start's are the record's own
    sentences = []
    for before, now in zip(records, records[1:]):
        differing = []
        for name, title in (("versions", "versions"), ("git", "code"), ("devices", "devices")):
            one, other = as_object(before.get(name)), as_object(now.get(name))
            fields = [field for field in sorted({*one, *other}) if one.get(field) != other.get(field)]
            if one and other and fields:
                changed = ", ".join(f"{field} {one.get(field)} -> {other.get(field)}" for field in fields)
                differing.append(f"{title}: {changed}")
        if differing:
            sentences.append(f"The start of {now.get('time')} ran with other {'; '.join(differing)}.")
    return sentences
