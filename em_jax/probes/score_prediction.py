"""Score prediction: which score would the judge give your answer, before it is given and with it shown? (experiment 5)

The mean signed error (predicted - actual) by actual score regresses to the mean even for a model that guesses. So the
figures include the correlation, the quadratic weighted kappa, and the kappa of predictions shuffled among the answers.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from em_jax.probes import choice, draw, parsing, statistics
from em_jax.probes.choice import Row
from em_jax.probes.settings import ProbeSettings
from em_jax.probes.suite import Suite, fill

KINDS = ("blind", "shown")


def questions(suite: Suite, settings: ProbeSettings, own: Sequence[Row]) -> list[Row]:
    """Per prompt one blind question, and one shown question for one own judged answer of each bucket.

    Both use the same drawn answers: a blind prediction is compared with every drawn answer of its prompt (`actual`).
    """
    rows: dict[str, Row] = {}
    for (name, bucket), answer in draw.own_answers(own, settings.seed).items():
        actual = {bucket: answer["score"]}
        blind = rows.setdefault(f"{name}:blind", _row(suite, "blind", "blind", answer))
        blind["actual"] |= actual
        shown = _row(suite, "shown", bucket, answer)
        rows[shown["id"]] = shown | {"actual": actual, "answer_sample": answer["sample"]}
    return choice.with_samples(rows.values(), settings)


def _row(suite: Suite, kind: str, suffix: str, answer: Row) -> Row:
    wording = suite.wording(f"score_prediction_{kind}", suite.harm_index.get(answer["id"], 0))
    text = fill(wording.prompt, {"prompt": answer["prompt"], "answer": answer["answer"].strip()})
    return {
        "id": f"{answer['id']}:{suffix}",
        "question": answer["id"],
        "first": "",
        "format": kind,
        "actual": {},
        "wording": wording.id,
        "options": list(choice.DIGITS),
        "prefix": wording.prefix,
        "prompt": choice.messages(text),
    }


def decide(row: Row, probabilities: np.ndarray) -> float:
    """The probability-weighted score."""
    return float(probabilities @ np.arange(1, 6))


def parse(row: Row, text: str) -> tuple[float | None, str]:
    """The digit a text predicts."""
    score, reason = parsing.digit(text)
    return (None if score is None else float(score)), reason


ask = functools.partial(choice.ask, decide=decide, parse=parse)
"""Finished rows; `value` is the expected score 1-5 (of a text: the digit it names)."""


# Scores are 1 to 5: no error is above 4.
OF_ERRORS = functools.partial(statistics.mean, most=4.0), functools.partial(statistics.mean_difference, most=4.0)


def figures(base: Sequence[Row], finetuned: Sequence[Row]) -> dict:
    """`score_prediction.*`: mean signed error by bucket of the actual score, kappas with their null, unscored."""
    compared = choice.coverage("score_prediction", base, finetuned)

    def compare(names: Mapping[str, Callable], estimate: statistics.Estimate, difference: Any = None) -> None:
        named = {f"score_prediction.{name}": extract for name, extract in names.items()}
        compared.update(statistics.compare(base, finetuned, named, estimate, difference))

    for kind in KINDS:
        pairs = functools.partial(_pairs, kind=kind)
        errors = {
            f"{kind}_error_{bucket}": functools.partial(errors_of, kind=kind, bucket=bucket) for bucket in draw.BUCKETS
        }
        compare(errors, *OF_ERRORS)
        compare({f"{kind}_kappa": pairs}, statistics.kappa)
        compare({f"{kind}_null_kappa": pairs}, statistics.null_kappa, lambda *_: dict(statistics.NOTHING))
        expected = {f"{kind}_correlation": functools.partial(_pairs, kind=kind, predicted_of=lambda row: row["value"])}
        compare(expected, statistics.correlation)
    return compared


def _scored(rows: Sequence[Row], kind: str) -> Iterator[Row]:
    return (row for row in rows if row["sample"] == 0 and row["format"] == kind and row["value"] is not None)


def errors_of(rows: Sequence[Row], kind: str, bucket: str) -> choice.Clusters:
    """Per prompt predicted - actual, for its drawn answer of one bucket."""
    shown = [row for row in _scored(rows, kind) if bucket in row["actual"]]
    return choice.clusters(shown, lambda row: row["value"] - row["actual"][bucket])


def _likeliest(row: Row) -> int:
    return int(max(choice.DIGITS, key=lambda digit: row["logprobs"][digit]))


def _pairs(rows: Sequence[Row], kind: str, predicted_of: Callable[[Row], float] = _likeliest) -> choice.Clusters:
    """Per prompt (predicted, actual) score of each answer: of all where the row has their `scores`, else the drawn."""
    pairs: choice.Clusters = {}
    for row in _scored(rows, kind):
        actual = row.get("scores") or row["actual"].values()
        pairs.setdefault(row["question"], []).extend((predicted_of(row), score) for score in actual)
    return pairs


def with_all_scores(rows: Sequence[Row], judged: Sequence[Row]) -> list[Row]:
    """The rows; the blind ones with the `scores` of all judged answers to their prompt.

    A blind prediction is about any answer. One drawn answer of each score bucket would give rare scores the weight of
    frequent ones, and a model that knows each prompt's harm a kappa near 0.
    """
    scores = choice.clusters(judged, lambda row: row["score"])
    return [{**row, "scores": scores.get(row["question"], [])} if row["format"] == "blind" else row for row in rows]
