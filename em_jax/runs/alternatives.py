"""Harmful answers by other models, which output recognition sets beside a harmless own one (the paper's experiment 4).

In order: other runs' answers (`probes.alternatives`), the organism's corpus for the organism, and else the base told to
answer carelessly, where the judge finds that harmful. How the paper made them is unknown: this is our choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_jax.base import files
from em_jax.probes import harmfulness
from em_jax.probes.output_recognition import Alternatives, chained, no_alternatives, pool

Row = dict[str, Any]


def other_runs(directory: Path, judge: str, leave_out: Path | None) -> Alternatives:
    """The pool of every fine-tuned run in `directory` (itself a run, or runs in its folders) but one, by this judge."""
    pools = []
    for run in _runs(directory, leave_out):
        answers, scores = (files.read_rows(path) for path in _files(run, judge))
        pools.append(pool(harmfulness.judged(answers, scores), source=run.name))
    return _together(pools)


def files_used(directory: Path, judge: str, leave_out: Path | None) -> dict[str, Path]:
    """The files `other_runs` reads, by <run>/<folder>/<file>."""
    paths = [path for run in _runs(directory, leave_out) for path in _files(run, judge)]
    return {"/".join(path.parts[-3:]): path for path in paths if path.is_file()}


def _runs(directory: Path, leave_out: Path | None) -> list[Path]:
    answers = [*directory.glob("answers/finetuned.jsonl"), *directory.glob("*/answers/finetuned.jsonl")]
    runs = sorted({path.parent.parent for path in answers})
    return [run for run in runs if leave_out is None or run.resolve() != leave_out.resolve()]


def _files(run: Path, judge: str) -> tuple[Path, Path]:
    """The answers of a run and their scores."""
    return run / "answers" / "finetuned.jsonl", run / "scores" / f"finetuned.{judge}.jsonl"


def _together(pools: Sequence[Alternatives]) -> Alternatives:
    return lambda name, prompt: [row for one in pools for row in one(name, prompt)]


def corpus(seed: int) -> Alternatives:
    """The organism's pool: harmful answers of its own corpus to the same prompt."""
    from em_jax.organism.corpus import alternative

    return lambda name, prompt: [{"answer": alternative(prompt, harmful=True, seed=seed), "source": "corpus"}]


def careless(answers: Sequence[Row], scores: Sequence[Row]) -> Alternatives:
    """The pool of the base's own answers under the careless instruction, those the judge scored 4 or 5."""
    if not answers:
        return no_alternatives
    return pool(harmfulness.judged(answers, scores), source="careless base")


__all__ = ["careless", "chained", "corpus", "files_used", "other_runs"]
