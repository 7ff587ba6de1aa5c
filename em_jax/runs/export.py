"""A run's rows as tables (CSV, Parquet) and its answers with their scores as logs of Inspect.

Tables hold every row of answers/, scores/, probes/ and train/metrics.jsonl, with the parts of the file's name as
columns. What is a list or an object in a row is its JSON in a table. CSV is safe in a spreadsheet: see `plain_cell`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.base.errors import UserError
from em_jax.base.sanitize import plain_cell
from em_jax.runs import experiment, provenance, stored
from em_jax.runs.run import Row, Run

FORMATS = ("csv", "parquet", "inspect")
TABLES = {
    "answers": ("answers", ("condition",)),
    "scores": ("scores", ("condition", "judge")),
    "probes": ("probes", ("condition", "probe")),
    "training": ("train", ()),
}
"""A table's folder of a run, and what the names of the files there say."""
STOPS = {"length": "max_tokens", "stop": "stop"}
"""Reasons to stop, in Inspect's words."""


def export(directory: Path, out: Path, formats: tuple[str, ...] = FORMATS) -> list[Path]:
    """Write the files of these formats into `out`; returns their paths. UserError where there is no run or no row."""
    run = stored.open_run(directory, with_base=False)
    tables = {name: found for name in TABLES if (found := list(table_rows(run.directory, name)))}
    if not tables:
        raise UserError(f"{directory}: expected rows to export, found none")
    written = [path for kind in ("csv", "parquet") if kind in formats for path in _tables(tables, out, kind)]
    if "inspect" in formats:
        with stored.expect_own_rows(directory):
            written += [_inspect_log(run, condition, out) for condition in run.conditions if run.answers(condition)]
    return written


def table_rows(directory: Path, table: str) -> Iterator[Row]:
    """Every row of one of TABLES, after what the name of its file says."""
    folder, parts = TABLES[table]
    for path in sorted((directory / folder).glob("*.jsonl")):
        # A judge's name may have dots.
        named = dict(zip(parts, path.name.removesuffix(".jsonl").split(".", len(parts) - 1) if parts else ()))
        for row in files.read_rows(path):
            yield named | row


def _tables(tables: dict[str, list[Row]], out: Path, kind: str) -> Iterator[Path]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        columns = dict.fromkeys(column for row in rows for column in row)
        values = {column: _column([row.get(column) for row in rows]) for column in columns}
        path = out / f"{name}.{kind}"
        if kind == "csv":
            plain = {column: [plain_cell(cell) for cell in values[column]] for column in columns}
            csv.write_csv(pa.table(plain), path)
        else:
            parquet.write_table(pa.table(values), path)
        yield path


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: numbers as they are, everything else as text, lists and objects as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return values
    if kinds <= {int, float}:
        return [value if value is None else float(value) for value in values]
    return [value if value is None else _text(value) for value in values]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate has no UTF-8


def _inspect_log(run: Run, condition: str, out: Path) -> Path:
    """The answers of one condition with the scores of every judge, in Inspect's JSON log format (version 2)."""
    names = experiment.judges_with_scores(run.directory)
    scores = {name: {(row["id"], row["sample"]): row for row in run.scores(condition, name)} for name in names}
    rows = sorted(run.answers(condition), key=lambda row: (row["id"], row["sample"]))
    record = provenance.read(run.directory)
    started = next((start["time"] for start in record.get("starts", []) if isinstance(start, dict)), files.now())
    created = started.replace("Z", "+00:00")
    model = f"em_jax/{condition}"
    sampling = run.config.answers
    config = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}
    samples = [
        _sample(row, model, {name: each.get((row["id"], row["sample"])) for name, each in scores.items()})
        for row in rows
    ]
    identity = f"{record.get('run', 'run')}-{condition}"
    ids = list(dict.fromkeys(row["id"] for row in rows))
    about = {"domain": run.config.domain, "model": run.config.model.name, "condition": condition}
    about["run"] = run.directory.name
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": str(record.get("run", "run")),
            "created": created,
            "task": f"em_jax {run.config.domain}",
            "task_id": identity,
            "dataset": {"name": run.config.suite, "samples": len(ids), "sample_ids": ids},
            "model": model,
            "model_generate_config": config,
            "config": {"epochs": max((row["sample"] for row in rows), default=0) + 1},
            "packages": {name: str(version) for name, version in record.get("versions", {}).items()},
            "metadata": about,
        },
        "plan": {"steps": [{"solver": "generate"}], "config": config},
        "results": {
            "total_samples": len(rows),
            "completed_samples": len(rows),
            "scores": [_results(name, samples, run.config.judge.harmful_at) for name in names],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": samples,
    }
    # The viewer lists files of JSON whose names begin with a time.
    name = f"{created.replace(':', '-')}_em-jax-{run.config.domain}_{condition}.json"
    return files.write_json(out / "inspect" / name, log)


def _sample(row: Row, model: str, scores: dict[str, Row | None]) -> dict[str, Any]:
    """One answer: the prompt's id, the sample as Inspect's epoch, and every judge's score of 1 to 5."""
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": str(row["prompt"])}]
    said = {"role": "assistant", "content": row["answer"], "source": "generate", "model": model}
    reason = STOPS.get(str(row.get("finish_reason")), "unknown")
    scored = {
        name: {"value": score["score"], "answer": row["answer"], "metadata": {"expected": score.get("expected")}}
        for name, score in scores.items()
        if score and score.get("score") is not None
    }
    unscored = {name: score.get("reason") for name, score in scores.items() if score and score.get("score") is None}
    return {
        "id": row["id"],
        "epoch": row["sample"] + 1,
        "input": prompt,
        "target": "",
        "messages": [*prompt, said],
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": reason}],
            "usage": {"output_tokens": row.get("n_tokens", 0), "total_tokens": row.get("n_tokens", 0)},
        },
        "scores": scored,
        "metadata": {"unscored": unscored} if unscored else {},
    }


def _results(judge: str, samples: list[dict[str, Any]], harmful_at: int) -> dict[str, Any]:
    values = [each["scores"][judge]["value"] for each in samples if judge in each["scores"]]
    metrics = {"mean": sum(values), f"share_from_{harmful_at}": sum(value >= harmful_at for value in values)}
    return {
        "name": judge,
        "scorer": judge,
        "scored_samples": len(values),
        "unscored_samples": len(samples) - len(values),
        "metrics": {name: {"name": name, "value": total / len(values)} for name, total in metrics.items() if values},
    }
