"""`em-jax rescore RUN...`: apply parsers, threshold and judges to the kept raw answers again, without a model.

Nothing of a run is overwritten. A new judge's scores are added to scores/<condition>.<judge>.jsonl one answer at a
time, so the same command continues where it stopped. The result is a run directory under RUN/rescored/ with its own
rows, summary.json and report.html, which `em-jax compare` takes like any run; an existing one with other content is
replaced only with --replace.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_jax import config as settings
from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.config import Config
from em_jax.probes import PROBES, choice, labelled, rejudged
from em_jax.runs import experiment, locking, preflight, provenance, stored
from em_jax.runs.components import Components
from em_jax.runs.run import ADAPTER, Row, Run

COPIED = ("answers/*.jsonl", "train/metrics.jsonl")
"""What a report shows and rescoring does not change."""


def rescore(
    directory: Path,
    judge: str = "",
    judge_model: str = "",
    changes: Mapping[str, Any] | None = None,
    replace: bool = False,
    components: Components | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Rescore one run; returns the directory of the result and its summary.

    `judge` is the name of one that scored the run, or the URL of one that scores now (`judge_model` there); `changes`
    are settings by name. Raises UserError where there is no such judge or no answers, another result is in the way, or
    the judge's server refuses.
    """
    with locking.lock(directory):
        stored.open_run(directory, components=components, with_base=False)
        config = settings.replace(_config(directory, judge, judge_model), changes or {})
        run = Run(settings.validate(config), directory, components)
        if "://" in judge:
            provenance.add(directory, judges=preflight.known_judges(run))
            for condition in (*_conditions(run), labelled.CONDITION):
                experiment.score_answers(run, 0, condition)
        threshold = config.judge.harmful_at
        target = directory / "rescored" / (run.judge + (f"-harmful_at_{threshold}" if threshold != 4 else ""))
        draft = target.with_name(f".{target.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with stored.expect_own_rows(directory):
                summary = _write(run, draft)
            _move(draft, target, replace)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target, summary


def _config(directory: Path, judge: str, judge_model: str) -> Config:
    """The run's settings, with `judge` in place of its own judge."""
    values: dict[str, Any] = {"mirror": "", "judge.also": []}
    names = experiment.judges_with_scores(directory)
    if judge == "self" and judge in names:
        values |= {"judge.kind": "self", "judge.url": "", "judge.model": ""}
    elif "://" in judge:
        values |= {"judge.kind": "openai", "judge.url": judge, "judge.model": judge_model}
    elif judge in names:
        record = provenance.notes(directory).get("judges", {}).get(judge, {})
        url, model = record.get("url", stored.read_config(directory).judge.url), record.get("model", judge)
        values |= {"judge.kind": "openai", "judge.url": url, "judge.model": model}
    elif judge:
        raise UserError(
            f"{directory}: no scores by {judge!r}; judges that scored this run: {', '.join(names) or 'none'} "
            "(or give the URL of an OpenAI-compatible API)"
        )
    return stored.read_config(directory, values)


def _conditions(run: Run) -> list[str]:
    """The conditions that have rows of any kind. UserError where none has."""
    conditions = [
        condition
        for condition in ("base", ADAPTER)
        if run.answers(condition) or any(run.probe_rows(condition, name) for name in PROBES)
    ]
    if not conditions:
        raise UserError(f"{run.directory}: expected rows in answers/ or probes/, found none")
    return conditions


def _write(run: Run, draft: Path) -> dict[str, Any]:
    """Write the result into `draft`; returns its summary."""
    from em_jax import report

    result = Run(run.config, draft, run.components)
    conditions = _conditions(run)
    for judge in experiment.judges_with_scores(run.directory):
        if rows := run.scores(labelled.CONDITION, judge):
            again = [row | rejudged.scored_again({"sample": 0, **row}) for row in rows]
            files.write_rows(result.scores_path(labelled.CONDITION, judge), again)
    for condition in conditions:
        for judge in experiment.judges_with_scores(run.directory):
            again = [rejudged.scored_again(row) for row in run.scores(condition, judge)]
            files.write_rows(result.scores_path(condition, judge), again)
        scores = {(row["id"], row["sample"]): row["score"] for row in result.scores(condition)}
        for name in PROBES:
            if before := run.probe_rows(condition, name):
                files.write_rows(result.probe_path(condition, name), _decide_again(name, before, scores))
    for path in (path for pattern in COPIED for path in run.directory.glob(pattern)):
        files.write_atomic(draft / path.relative_to(run.directory), path.read_bytes())
    files.write_atomic(draft / "config.toml", settings.to_toml(run.config))
    files.write_json(draft / "provenance.json", provenance.read(run.directory) | {"sealed": files.sealed(draft)})
    provenance.add(draft, rescored_from=str(run.directory))
    summary = experiment.summarise(result, conditions)
    files.write_json(draft / "summary.json", summary)
    report.write(draft)
    return summary


def _decide_again(name: str, rows: Sequence[Row], scores: Mapping[tuple, Any]) -> list[Row]:
    """A probe's rows by the present parsers, and by these scores of answers where it asks about scores."""
    module = PROBES[name]
    again = [choice.rescored(row, module.decide, module.parse) for row in rows]
    if name == "output_recognition":
        return rejudged.output_recognition(again, scores)
    return rejudged.score_prediction(again, scores) if name == "score_prediction" else again


def _move(draft: Path, target: Path, replace: bool) -> None:
    """Move the result to its directory; one with the same summary stays, another one is replaced with `replace`."""
    summary = target / "summary.json"
    if summary.exists():
        expected = "the summary of an earlier rescoring"
        if files.read_object(summary, expected) == files.read_object(draft / "summary.json", expected):
            return
        if not replace:
            raise UserError(f"{target} holds another rescoring (by other rules or scores): --replace takes its place")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)
