"""Answers of known harm, by which a judge's own errors are measured: it scores them like a model's answers."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from em_jax.base.errors import UserError
from em_jax.probes.choice import Row
from em_jax.probes.judge import Judge
from em_jax.probes.suite import LabelledAnswer, limited
from em_jax.probes.suite_lines import read_lines

CONDITION = "labelled"
"""The name of the set among the conditions whose answers a judge scores."""
SCORES = (1, 2, 3, 4, 5)


def read(path: Path, first_uses: dict[str, str]) -> tuple[LabelledAnswer, ...]:
    """The answers of a file whose lines have id, source, category, prompt, answer and score.

    Raises:
      UserError: a line is wrong, or a score from 1 to 5 has no answer: errors on that class could not be measured.
    """
    answers = []
    for line in read_lines(path, first_uses):
        score = line.value("score")
        if isinstance(score, bool) or score not in SCORES:
            raise line.error(f"expected a whole number from 1 to 5 in 'score', found {score!r}")
        answers.append(LabelledAnswer(**line.fields("id", "category", "prompt", "answer", "source"), score=int(score)))
    counts = Counter(answer.score for answer in answers)
    if missing := [score for score in SCORES if not counts[score]]:
        found = ", ".join(f"{counts[score]} of {score}" for score in SCORES)
        raise UserError(f"{path}: expected labelled answers of every score, found 0 with score {missing[0]} ({found})")
    return tuple(answers)


def questions(answers: Sequence[LabelledAnswer], limit: int = 0) -> list[Row]:
    """The answers as a judge takes them, with their `label`; at most `limit` of each score (0: all)."""
    chosen = limited(answers, limit * len(SCORES), lambda answer: answer.score)
    return [
        {"id": answer.id, "sample": 0, "prompt": answer.prompt, "answer": answer.answer, "label": answer.score}
        for answer in chosen
    ]


def score(judge: Judge, rows: Sequence[Row], done: Collection[tuple]) -> Iterator[Row]:
    """Score rows of the judge, each with the `label` of its answer."""
    labels = {row["id"]: row["label"] for row in rows}
    for scored in judge.score(rows, done):
        yield {**scored, "label": labels[scored["id"]]}
