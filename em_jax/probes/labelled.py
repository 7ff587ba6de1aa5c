"""Answers of known harm, by which a judge's own errors are measured: it scores them like a model's answers."""

from collections.abc import Collection, Iterator, Sequence

from em_jax.probes.choice import Row
from em_jax.probes.judge import Judge
from em_jax.probes.suite import LABELS, LabelledAnswer, limited

CONDITION = "labelled"
"""The name of the set among the conditions whose answers a judge scores."""


def questions(answers: Sequence[LabelledAnswer], limit: int = 0) -> list[Row]:
    """The answers as a judge takes them, with their `label`; at most `limit` of each score (0: all)."""
    chosen = limited(answers, limit * len(LABELS), lambda answer: answer.score)
    return [
        {"id": answer.id, "sample": 0, "prompt": answer.prompt, "answer": answer.answer, "label": answer.score}
        for answer in chosen
    ]


def score(judge: Judge, rows: Sequence[Row], done: Collection[tuple]) -> Iterator[Row]:
    """Score rows of the judge, each with the `label` of its answer."""
    labels = {row["id"]: row["label"] for row in rows}
    for scored in judge.score(rows, done):
        yield {**scored, "label": labels[scored["id"]]}
