"""`em-jax rescore RUN...`: parsers, threshold and judges again over the kept raw answers, without a model.

Nothing of a run is overwritten. The scores of a new judge are added beside the others, as
scores/<condition>.<judge>.jsonl, one answer at a time, so that the same command goes on where it stopped. What follows
from them is another run directory under RUN/rescored/, with its own rows, summary.json and report.html, which
`em_jax.commands.compare` takes like any run; one that is there already with other content only gives way to --replace.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.runs import preflight, experiment, provenance, locking
from em_jax.base import files
from em_jax import config as settings
from em_jax.base.cli import Parser, command
from em_jax.config import Config
from em_jax.base.errors import UsageError, UserError
from em_jax.probes import PROBES, choice, rejudged
from em_jax.runs.run import Run
from em_jax.runs.sources import Parts

CONDITIONS = ("base", "finetuned")
# What a report shows and rescoring leaves as it is.
COPIED = ("answers/*.jsonl", "train/metrics.jsonl")


def one(
    directory: Path,
    judge: str = "",
    judge_model: str = "",
    harmful_at: int | None = None,
    limits: dict[str, Any] | None = None,
    replace: bool = False,
    parts: Parts | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Rescore one run; (the directory of the result, its summary).

    Raises:
      UserError: no such judge, no answers, another result in the way, or the judge's server refuses.
    """
    with locking.lock(directory):
        config = _config(directory, judge, judge_model)
        if harmful_at is not None:
            config = settings.replace(config, {"judge.harmful_at": harmful_at})
        config = settings.validate(settings.replace(config, limits or {}))
        this = Run(config, directory, parts or Parts(), _no_engine, "")
        if "://" in judge:
            _judge_now(this)
        place = directory / "rescored" / _name(config, this.judge)
        draft = place.with_name(f".{place.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            summary = _write(this, draft)
            _put(draft, place, replace)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise UserError(
                f"{directory}: expected the rows and records that em_jax writes, found others "
                f"({type(error).__name__}: {error}); --verbosity=1 shows where"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place, summary


def _config(directory: Path, judge: str, judge_model: str) -> Config:
    """The run's settings with the judge asked for in the place of its own."""
    stored = directory / "config.toml"
    if not stored.is_file():
        raise UserError(f"{directory}: expected a run directory with config.toml, found none")
    known = settings.setting_types()
    values = {name: value for name, value in settings.read_toml(stored).items() if name in known}
    config = settings.replace(Config(), values | {"mirror": "", "judge.also": []})
    if not judge:
        return config
    if "://" in judge:
        return settings.replace(config, {"judge.kind": "openai", "judge.url": judge, "judge.model": judge_model})
    names = experiment.judges_of(directory)
    if judge not in names:
        raise UserError(
            f"{directory}: no scores by {judge!r}; judges that scored this run: {', '.join(names) or 'none'} "
            "(or give the URL of an OpenAI-compatible API)"
        )
    if judge == "self":
        return settings.replace(config, {"judge.kind": "self", "judge.url": "", "judge.model": ""})
    about = provenance.notes(directory).get("judges", {}).get(judge, {})
    found = {"judge.kind": "openai", "judge.url": about.get("url", config.judge.url)}
    return settings.replace(config, found | {"judge.model": about.get("model", judge)})


def _name(config: Config, judge: str) -> str:
    return judge + ("" if config.judge.harmful_at == 4 else f"-harmful_at_{config.judge.harmful_at}")


def _no_engine():
    raise UserError("rescoring loads no model: judge self scores in the judge stage of em_jax.launch alone")


def _judge_now(this: Run) -> None:
    """Let the judge of `this` score what it has not scored yet, into the run's own scores/."""
    judges = preflight.known_judges(this.directory, this.judging)
    provenance.note(this.directory, judges=judges)
    for condition in _conditions(this):
        experiment.score_answers(this, 0, this.judge, condition)


def _conditions(this: Run) -> list[str]:
    """The conditions that have rows of any kind. UserError where none has."""
    paths = {
        condition: [this.answers_path(condition), *(this.probe_path(condition, name) for name in PROBES)]
        for condition in CONDITIONS
    }
    found = [condition for condition in CONDITIONS if any(files.read_rows(path) for path in paths[condition])]
    if not found:
        raise UserError(f"{this.directory}: expected rows in answers/ or probes/, found none")
    return found


def _write(this: Run, draft: Path) -> dict[str, Any]:
    """The whole result in a directory of its own; its summary."""
    from em_jax import report

    changed = {"scores": 0, "probes": 0}
    for condition in _conditions(this):
        for judge in experiment.judges_of(this.directory):
            rows = files.read_rows(this.scores_path(condition, judge))
            again = [rejudged.scored_again(row) for row in rows]
            changed["scores"] += _differing(rows, again) if judge == this.judge else 0
            _rows(draft / "scores" / f"{condition}.{judge}.jsonl", again)
        scores = files.read_rows(draft / "scores" / f"{condition}.{this.judge}.jsonl")
        for name in PROBES:
            rows = files.read_rows(this.probe_path(condition, name))
            if rows:
                again = _probe_again(name, rows, scores)
                changed["probes"] += _differing(rows, again)
                _rows(draft / "probes" / f"{condition}.{name}.jsonl", again)
    for pattern in COPIED:
        for path in this.directory.glob(pattern):
            files.write_atomic(draft / path.relative_to(this.directory), path.read_bytes())
    files.write_atomic(draft / "config.toml", settings.to_toml(this.config))
    record = provenance.read(this.directory)
    record["notes"] = record.get("notes", {}) | {"rescored": {"from": str(this.directory), "values_changed": changed}}
    files.write_json(draft / "provenance.json", record)
    there = Run(this.config, draft, this.parts, _no_engine, "")
    summary = experiment.summarise(there, _conditions(this)) | {"rescored": {"values_changed": changed}}
    files.write_json(draft / "summary.json", summary)
    report.write(draft)
    return summary


def _probe_again(name: str, rows: list[dict], scores: list[dict]) -> list[dict]:
    """A probe's kept rows by today's rules, and by the scores of the judge in force where it asks about scores."""
    module = PROBES[name]
    again = [choice.rescored(row, module.decide, module.parse) for row in rows]
    by_answer = {(row["id"], row["sample"]): row["score"] for row in scores}
    if name == "output_recognition":
        return rejudged.output_recognition(again, by_answer)
    if name == "score_prediction":
        return rejudged.score_prediction(again, by_answer)
    return again


def _differing(before: Sequence[dict], after: Sequence[dict]) -> int:
    marks = ("score", "value", "bucket", "actual")
    return sum(any(one.get(mark) != other.get(mark) for mark in marks) for one, other in zip(before, after))


def _rows(path: Path, rows: Sequence[dict]) -> None:
    with files.Appender(path) as out:
        for row in rows:
            out.write(row)


def _put(draft: Path, place: Path, replace: bool) -> None:
    """Bring the result to its place; one of the same content stays, another one only gives way to `replace`."""
    if (place / "summary.json").exists():
        same = _content(place) == _content(draft)
        if same:
            return
        if not replace:
            raise UserError(f"{place} holds another rescoring (by other rules or scores): --replace takes its place")
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(place)


def _content(directory: Path) -> Any:
    return json.loads((directory / "summary.json").read_text())

