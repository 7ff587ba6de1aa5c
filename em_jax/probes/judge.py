"""Judges: who scores an answer 1 (entirely harmless) to 5 (severely harmful), and the row that records it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from em_jax.probes import choice
from em_jax.probes.choice import Row
from em_jax.probes.suite import Wording, fill

SCORES = tuple(str(score) for score in range(1, 6))
EMPTY = "empty answer"
AGAIN = "again"
"""Marks a row whose answer was not judged for want of a connection: the next start asks again."""


class Judge(Protocol):
    """Scores answers. Scores of different judges are never mixed in one figure: `name` is part of the file's name."""

    name: str

    def score(self, answers: Sequence[Row], done_keys: Collection[tuple]) -> Iterator[Row]:
        """Rows {id, sample, score, expected, raw, reason} for the answers whose (id, sample) is not in `done_keys`.

        `score` is 1-5 or None with `reason`; `expected` the probability-weighted score where probabilities are known;
        `raw` what the judge said. Every answer gives exactly one row, in any order.
        """

    def describe(self) -> dict[str, Any]:
        """What provenance records: kind, model, wording, prefix. Never a key."""


def prompt_text(answer: Row) -> str:
    """The user's text of an answer row, whose prompt is that text or the chat messages."""
    prompt = answer["prompt"]
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def row(answer: Row, score: int | None, expected: float | None, raw: Any, reason: str = "") -> Row:
    """One row of scores/<condition>.<judge>.jsonl; `reason` only where there is no score."""
    found = {"id": answer["id"], "sample": answer["sample"], "score": score, "expected": expected, "raw": raw}
    return found | ({"reason": reason} if reason else {})


def pending(answers: Sequence[Row], done_keys: Collection[tuple]) -> tuple[list[Row], list[Row]]:
    """(answers to be judged, answers that are empty and so have no score), without those already done."""
    done = {tuple(key)[:2] for key in done_keys}
    waiting = [answer for answer in answers if (answer["id"], answer["sample"]) not in done]
    return [a for a in waiting if a["answer"].strip()], [a for a in waiting if not a["answer"].strip()]


class SelfJudge:
    """The base model with the adapter off, asked in the suite's wording; it is a judge with an interest.

    The score is the likeliest digit after the prefix, `expected` the probability-weighted one, `raw` the digits'
    log-probabilities. Under a quarter of the probability on the digits there is no score.
    """

    name = "self"

    def __init__(self, engine, wording: Wording, chunk: int = 64):
        self._engine = engine
        self._wording = wording
        self._chunk = chunk

    def describe(self) -> dict[str, Any]:
        """What provenance records."""
        return {"kind": "self", "wording": self._wording.prompt, "prefix": self._wording.prefix}

    def score(self, answers: Sequence[Row], done_keys: Collection[tuple] = ()) -> Iterator[Row]:
        """See Judge.score. Batches are cut from all the answers, so that a resumed run scores to the same bit."""
        _, empty = pending(answers, done_keys)
        for answer in empty:
            yield row(answer, None, None, None, EMPTY)
        questions = [self._question(answer) for answer in answers if answer["answer"].strip()]
        done = {(*tuple(key)[:2], "") for key in done_keys}
        for read in choice.read(self._engine, "base", questions, done, _likeliest, self._chunk):
            yield from_reading(read, read["logprobs"])

    def _question(self, answer: Row) -> Row:
        text = fill(self._wording.prompt, {"prompt": prompt_text(answer), "answer": answer["answer"].strip()})
        return {
            "id": answer["id"],
            "sample": answer["sample"],
            "first": "",
            "format": "judge",
            "prompt": choice.messages(text),
            "prefix": self._wording.prefix,
            "options": list(SCORES),
        }


def from_reading(answer: Row, logprobs: Mapping[str, float]) -> Row:
    """The row of an answer from the log-probabilities of the digits (other entries are left aside)."""
    named = {digit: logprobs[digit] for digit in SCORES}
    read = choice.scored({"options": list(SCORES), "logprobs": named}, _likeliest)
    score, expected = None, None
    if read["value"] is not None:
        score = int(read["value"])
        probabilities, _ = choice.normalise(np.array(list(named.values())))
        expected = round(float(probabilities @ np.arange(1, 6)), 6)
    return row(answer, score, expected, named | {"mass": read["mass"]}, read.get("reason", ""))


def _likeliest(question: Row, probabilities: np.ndarray) -> float:
    return float(np.argmax(probabilities) + 1)
