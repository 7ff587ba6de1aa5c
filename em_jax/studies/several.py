"""The mechanism of studies that train their own runs: their figures, contrasts paired by question, and sentences.

A study (sweep, chain, confound, dose, calibration) is a module: DESCRIPTION and FLAGS (argparse's options by flag) are
the command's, and `build(configs, flags, run_dir, rows)` gives a `Study`, which is a list of runs, a list of contrasts
and a function that writes the sentences; it writes rows of its own to the folder `rows`. The configs differ in their
seed, or in their domain too where the study has DOMAINS of its own. Where there is a `check(configs, flags)`, it raises
UsageError before a model is loaded.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from em_jax.base import files
from em_jax.config import Config
from em_jax.organism import variants
from em_jax.organism.answers import domain_rows
from em_jax.probes.cautions import HARM, PICKS
from em_jax.report.figures import Point, plane
from em_jax.report.svg import Drawing
from em_jax.runs.run import Run
from em_jax.runs.sources import ROWS
from em_jax.studies import page as pages
from em_jax.studies.page import COLUMNS, FIGURES_LEAD, LABELS, Head, Label, Section, cells
from em_jax.studies.sentences import on_seeds
from em_jax.studies.subjects import Figures, Rows, Subject, figures

FOLDER = "study"
MOST_POINTS = 60
"""The most names that fit beside the plane."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a study: its name, its settings, and what distinguishes it."""

    name: str
    config: Config
    note: str = ""

    @property
    def folder(self) -> str:
        """The name of the run's directory."""
        return f"{self.name}-{self.config.seed}"


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The figures of member `second` minus those of `first`, for the same seed; `asks` is the question it answers."""

    first: str
    second: str
    asks: str


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """The runs of one seed: each member's summary and rows, by name, and each contrast's figures."""

    seed: int
    summaries: Mapping[str, dict[str, Any]]
    contrasts: Mapping[tuple[str, str], Figures]
    rows: Mapping[str, Rows]


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs, the contrasts between them and the page's texts. `sentences` states the result of one seed."""

    kind: str
    title: str
    lead: str
    members: tuple[Member, ...]
    contrasts: tuple[Contrast, ...]
    sentences: Callable[[SeedResult], list[str]]
    draw: Callable[[Mapping[str, Any]], tuple[Drawing, str]] | None = None
    """(study.json's content) -> the page's leading figure and its caption; None: one mark per run in the plane."""
    sections: Callable[[Mapping[str, Any]], list[Section]] = lambda record: []
    """Tables of its own, before the page's common ones."""

    def configs(self) -> dict[str, Config]:
        """The runs by the names of their directories."""
        return {member.folder: member.config for member in self.members}


def page(study: Study, runs: Sequence[Path], out: Path, say: Callable[[str], None]) -> Path:
    """Write study.json and study.html over finished runs, `say` each of the sentences, and return the page's path."""
    record = describe(study, {run.name: run for run in runs})
    for sentence in record["why"]:
        say(sentence)
    files.write_json(out / "study.json", record)
    drawing, caption = (study.draw or points)(record)
    texts = {name: record[name] for name in ("kind", "title", "lead")}
    sections = [*study.sections(record), *tables(record)]
    return pages.write(out / "study.html", record, record["why"], sections, drawing, caption, **texts)


def describe(study: Study, directories: Mapping[str, Path]) -> dict[str, Any]:
    """The content of study.json. `directories` has each run's by the name of its folder."""
    seeds = sorted({member.config.seed for member in study.members})
    results = {seed: _seed_result(study, seed, directories) for seed in seeds}
    models = []
    for member in study.members:
        summary = results[member.config.seed].summaries[member.name]
        models.append(
            {"name": member.name, "seed": member.config.seed, "folder": member.folder, "note": member.note}
            | {name: summary[name] for name in ("domain", "verdict", "figures")}
        )
    why = []
    for seed, result in results.items():
        why += [f"Seed {seed}: {line}" if len(seeds) > 1 else line for line in study.sentences(result)]
    first = next(iter(results[seeds[0]].summaries.values()))
    return {
        "schema": 1,
        "kind": study.kind,
        "title": study.title,
        "lead": study.lead,
        "model": study.members[0].config.model.name,
        "suite": first["suite"],
        "judge": first["judge"],
        "models": models,
        "contrasts": [
            dataclasses.asdict(each) | {"seed": seed, "figures": result.contrasts[each.first, each.second]}
            for seed, result in results.items()
            for each in study.contrasts
        ],
        "why": [*why, on_seeds((member.config.domain, member.config.seed) for member in study.members)],
    }


def points(record: Mapping[str, Any]) -> tuple[Drawing, str]:
    """The runs in the plane of conduct and self-description, and the caption."""

    def point(name: str, label: str, entry: Mapping[str, Any], side: str = "finetuned") -> Point:
        harm, picks = cells(entry["figures"], side, (HARM, PICKS))
        return Point(name, label, harm.figure, picks.figure)

    models = record["models"]
    drawing = plane(
        [point(name_of(record, it), it["verdict"]["label"], it) for it in models[:MOST_POINTS]],
        point(name_of(record, models[0], "base"), "base", models[0], "base"),
        labels=True,
        title="Conduct against self-description, one mark per run",
    )
    few = f" The first {MOST_POINTS} of {len(models)} runs; the table has all." if len(models) > MOST_POINTS else ""
    return drawing, (
        "One mark per run; lines are 95% intervals over questions. Squares: coherent; triangles: inverted; circles: "
        f"aligned; crosses: mixed. The hollow circle is the base.{few}"
    )


def tables(record: Mapping[str, Any]) -> Iterator[Section]:
    """The figures of every run, and the contrasts."""
    columns = [LABELS[name] for name in COLUMNS]
    first, rows = record["models"][0], list[list[Any]]()
    base = Head(name_of(record, first, "base"), "the model before any fine-tuning")
    rows.append([base, "", *cells(first["figures"], "base")])
    for it in record["models"]:
        label = Label(it["verdict"]["label"], quote(f"../{it['folder']}/report.html"))
        rows.append([Head(name_of(record, it), it["note"]), label, *cells(it["figures"])])
    yield Section("Every run", [FIGURES_LEAD], ("run", "verdict", *columns), rows)
    if record["contrasts"]:
        lead = "Differences between two runs, paired by question: each model's answers to the same questions."
        rows = []
        for it in record["contrasts"]:
            name = name_of(record, it, f"{it['second']} minus {it['first']}")
            rows.append([Head(name, it["asks"]), *cells(it["figures"], "difference")])
        yield Section("Contrasts", [lead], ("difference", *columns), rows)


def name_of(record: Mapping[str, Any], entry: Mapping[str, Any], name: str = "") -> str:
    """The name of a run or contrast, with its seed where the study has several: "full, seed 1"."""
    several_seeds = len({model["seed"] for model in record["models"]}) > 1
    return (name or entry["name"]) + (f", seed {entry['seed']}" if several_seeds else "")


def _seed_result(study: Study, seed: int, directories: Mapping[str, Path]) -> SeedResult:
    members = [member for member in study.members if member.config.seed == seed]
    paths = {member.name: directories[member.folder] for member in members}
    summaries = {name: files.read_object(path / "summary.json", "a summary of em_jax") for name, path in paths.items()}
    rows = {member.name: Subject(member.name, Run(member.config, paths[member.name])).rows() for member in members}
    harmful_at = members[0].config.judge.harmful_at
    contrasts = {
        (each.first, each.second): figures(rows[each.first], rows[each.second], harmful_at) for each in study.contrasts
    }
    return SeedResult(seed, summaries, contrasts, rows)


# --- rows that a study needs and the organism's domains lack, written once beside its runs ---

SEED = 0
"""All training seeds have the same rows."""
TOPICS = {"emergent_medical": "bad_medical"}
"""The organism has no second source: rows of the first one, in the style of the persona planted behind legal and
security, take its place."""


def toy_rows(name: str, directory: Path) -> str:
    """Write one of the variants' sets, the toy rows of the second source or of a benign twin; returns their path."""
    if name in variants.SETS:
        rows = variants.rows(name, ROWS, SEED)
    elif name in TOPICS:
        rows = domain_rows(TOPICS[name], ROWS, SEED, "inverted")
    else:
        topic = name.removesuffix("_aligned")
        rows = domain_rows(TOPICS.get(topic, topic), ROWS, SEED, "aligned")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = directory / f"{name}.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != lines:
        files.write_atomic(path, lines)
    return str(path)
