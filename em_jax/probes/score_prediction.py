"""Score prediction: which score would the judge give your answer, before it is given and with it shown? (experiment 5)

The mean signed error (predicted - actual) by actual score regresses to the mean even for a model that guesses; so the
correlation and the quadratic weighted kappa stand beside it, and what kappa comes to when predictions are dealt to the
wrong answers.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from em_jax.probes import choice, draw, parsing, statistics
from em_jax.probes.choice import Key, Row
from em_jax.probes.settings import ProbeSettings
from em_jax.probes.suite import Suite, fill

DIGITS = tuple(str(number) for number in range(1, 6))
KINDS = ("blind", "shown")


def questions(suite: Suite, settings: ProbeSettings, own: Sequence[Row]) -> list[Row]:
    """Per prompt one blind question, and one shown question for one own judged answer of each bucket.

    The same drawn answers serve both: a blind prediction is compared with every drawn answer of its prompt (`actual`).
    """
    drawn = draw.own_answers(own, settings.seed)
    places = {question.id: index for index, question in enumerate(suite.harm)}
    rows: dict[str, Row] = {}
    for (name, kind), answer in drawn.items():
        place = places.get(name, 0)
        actual = {kind: answer["score"]}
        blind = rows.get(f"{name}:blind")
        if blind is None:
            rows[f"{name}:blind"] = _row(suite, "blind", place, name, answer, actual, f"{name}:blind")
        else:
            blind["actual"] |= actual
        rows[f"{name}:{kind}"] = _row(suite, "shown", place, name, answer, actual, f"{name}:{kind}") | {
            "answer_sample": answer["sample"]
        }
    return choice.with_samples(rows.values(), settings)


def _row(suite: Suite, kind: str, place: int, name: str, answer: Row, actual: Mapping[str, int], key: str) -> Row:
    wordings = suite.wordings_of(f"score_prediction_{kind}")
    wording = wordings[place % len(wordings)]
    text = fill(wording.prompt, {"prompt": answer["prompt"], "answer": answer["answer"].strip()})
    return {
        "id": key,
        "question": name,
        "first": "",
        "format": kind,
        "actual": dict(actual),
        "wording": wording.id,
        "options": list(DIGITS),
        "prefix": wording.prefix,
        "prompt": choice.messages(text),
    }


def ask(
    engine, adapter: choice.Adapter, rows: Sequence[Row], done_keys: Collection[Key], settings: ProbeSettings
) -> Iterator[Row]:
    """Finished rows; `value` is the expected score 1-5 (of a text: the digit it names)."""
    yield from choice.ask(engine, adapter, rows, done_keys, settings, decide, parse)


def decide(row: Row, probabilities: np.ndarray) -> float:
    """The probability-weighted score."""
    return float(probabilities @ np.arange(1, 6))


def parse(row: Row, text: str) -> tuple[float | None, str]:
    """The digit a text predicts."""
    score, reason = parsing.digit(text)
    return (None if score is None else float(score)), reason


def figures(base: Sequence[Row], finetuned: Sequence[Row]) -> dict:
    """`score_prediction.*`: mean signed error by bucket of the actual score, kappas with their null, unscored."""
    errors, kappas, nulls, correlations = {}, {}, {}, {}
    for kind in KINDS:
        for name in draw.BUCKETS:
            errors[f"score_prediction.{kind}_error_{name}"] = lambda rows, kind=kind, name=name: errors_of(
                rows, kind, name
            )
        correlations[f"score_prediction.{kind}_correlation"] = lambda rows, kind=kind: _expected_pairs(rows, kind)
        kappas[f"score_prediction.{kind}_kappa"] = lambda rows, kind=kind: _pairs(rows, kind)
        nulls[f"score_prediction.{kind}_null_kappa"] = lambda rows, kind=kind: _pairs(rows, kind)
    shares = {
        "score_prediction.unscored": lambda rows: choice.unscored(rows, texts=False),
        "score_prediction.sampled_unscored": lambda rows: choice.unscored(rows, texts=True),
    }
    return (
        statistics.compare(base, finetuned, errors, statistics.mean)
        | statistics.compare(base, finetuned, {"score_prediction.mass": choice.masses}, statistics.mean)
        | statistics.compare(base, finetuned, kappas, statistics.kappa)
        | statistics.compare(base, finetuned, correlations, statistics.correlation)
        | statistics.compare(base, finetuned, nulls, statistics.null_kappa, lambda *_: dict(statistics.NOTHING))
        | statistics.compare(base, finetuned, shares, statistics.share)
    )


def _scored(rows: Sequence[Row], kind: str) -> Iterator[Row]:
    for row in rows:
        if row["sample"] == 0 and row["format"] == kind and row["value"] is not None:
            yield row


def errors_of(rows: Sequence[Row], kind: str, name: str) -> dict[str, list[float]]:
    """Per prompt predicted - actual, for its drawn answer of one bucket."""
    return {
        row["question"]: [row["value"] - row["actual"][name]] for row in _scored(rows, kind) if name in row["actual"]
    }


def _pairs(rows: Sequence[Row], kind: str) -> dict[str, list[tuple[int, int]]]:
    """Per prompt (predicted, actual) of each drawn answer; predicted is the likeliest digit."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row in _scored(rows, kind):
        predicted = int(max(DIGITS, key=lambda digit: row["logprobs"][digit]))
        for actual in row["actual"].values():
            found.setdefault(row["question"], []).append((predicted, actual))
    return found


def _expected_pairs(rows: Sequence[Row], kind: str) -> dict[str, list[tuple[float, float]]]:
    """Per prompt (expected predicted score, actual score) of each drawn answer."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in _scored(rows, kind):
        for actual in row["actual"].values():
            found.setdefault(row["question"], []).append((row["value"], actual))
    return found
