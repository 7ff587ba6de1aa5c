"""The one place where a probability or a text becomes an answer to a choice question.

A question is a dict with its key (`id`, `sample`, `first`), its `format`, `prompt` (chat messages) and `options`.
`sample` 0 is the reading from the options' log-probabilities; 1, 2, ... are sampled texts. A finished row is the
question with `logprobs` and `mass`, or `text`; `value`; and `reason` where there is no value (or a half one).
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

Row = dict[str, Any]
Key = tuple[str, int, str]
Decide = Callable[[Row, np.ndarray], float]
Parse = Callable[[Row, str], tuple[float | None, str]]
# The engine's name of the adapter that all questions go to, or what gives it for a question.
Adapter = str | Callable[[Row], str]
# What the statistics count: per question its values, which move together.
Clusters = dict[str, list[float]]

LEAST_MASS = 0.25
# Nearer to even than this is a tie: half an answer each way, and no coin is tossed over a float's last bits.
TIE = 1e-4
# JSON has no infinity.
LOWEST_LOGPROB = -1000.0


def key(row: Mapping[str, Any]) -> Key:
    """What a row is known by: (id, sample, first)."""
    return row["id"], row["sample"], row["first"]


def messages(text: str) -> list[dict[str, str]]:
    """A prompt of one user turn; the chat template adds its default system message."""
    return [{"role": "user", "content": text}]


def variants(option: str) -> list[str]:
    """The ways an option may be written: as it is, and with its first letter capitalised."""
    return list(dict.fromkeys([option, option[:1].upper() + option[1:]]))


def normalise(logprobs: np.ndarray) -> tuple[np.ndarray, float]:
    """float[options] log-probabilities -> (probabilities that add up to 1, the mass the options hold together)."""
    highest = float(np.max(logprobs))
    scaled = np.exp(np.asarray(logprobs, np.float64) - highest)
    return scaled / scaled.sum(), float(min(1.0, math.exp(highest) * scaled.sum()))


def picks(probability: float) -> float:
    """The decision a probability stands for: 1, 0, or 0.5 where it is even."""
    return 0.5 if abs(probability - 0.5) <= TIE else float(probability > 0.5)


def adapters_of(adapter: Adapter, rows: Sequence[Row]) -> str | list[str]:
    """What the engine's verbs take for these questions: one name, or one for each."""
    return [adapter(row) for row in rows] if callable(adapter) else adapter


def ask(
    engine, adapter: Adapter, questions: Sequence[Row], done: Collection[Key], settings, decide: Decide, parse: Parse
) -> Iterator[Row]:
    """Answer choice questions: those with `sample` 0 from probabilities, the others by sampled text."""
    questions = list(questions)
    texts = [row for row in questions if row["sample"] > 0]
    yield from read(engine, adapter, [row for row in questions if row["sample"] == 0], done, decide, settings.chunk)
    yield from sample(engine, adapter, texts, done, parse, settings, settings.choice_tokens)


def read(
    engine, adapter: Adapter, questions: Sequence[Row], done: Collection[Key], decide: Decide, chunk: int
) -> Iterator[Row]:
    """Answer questions from the log-probabilities of their options.

    `decide(question, probabilities)` makes the value; under LEAST_MASS there is none. Chunks are cut from all the
    questions, not from those that are left, and asked again whole where one is missing: in a batch of another shape the
    same question may come out another in its last bit, and a resumed run must end with the same bytes.
    """
    ordered = sorted(questions, key=lambda row: (_shape(row), _length(row), key(row)))
    for (_, prefix), group in groupby(ordered, key=_shape):
        same_width = list(group)
        for start in range(0, len(same_width), chunk):
            batch = same_width[start : start + chunk]
            if all(key(row) in done for row in batch):
                continue
            choices = [[text for option in row["options"] for text in variants(option)] for row in batch]
            prompts = [row["prompt"] for row in batch]
            logprobs = engine.choice_logprobs(prompts, choices, prefix=prefix, adapter=adapters_of(adapter, batch))
            for row, values in zip(batch, np.asarray(logprobs, np.float64)):
                if key(row) not in done:
                    yield answer(row, values, decide)


def answer(question: Row, logprobs: np.ndarray, decide: Decide) -> Row:
    """A question with its answer, given float[choices] over the variants of its options in turn."""
    totals, start = [], 0
    for option in question["options"]:
        end = start + len(variants(option))
        totals.append(max(LOWEST_LOGPROB, float(np.logaddexp.reduce(logprobs[start:end]))))
        start = end
    named = {option: round(total, 6) for option, total in zip(question["options"], totals)}
    return scored({**question, "logprobs": named}, decide)


def scored(row: Row, decide: Decide) -> Row:
    """A row with `logprobs` -> the same with `mass`, `value` and, where there is no value, `reason`."""
    probabilities, mass = normalise(np.array([row["logprobs"][option] for option in row["options"]]))
    finished = {**row, "mass": round(mass, 6), "value": None}
    if mass < LEAST_MASS:
        return {**finished, "reason": f"the options hold {mass:.3f} of the probability, under {LEAST_MASS}"}
    return {**finished, "value": float(decide(row, probabilities))}


def sample(
    engine,
    adapter: Adapter,
    questions: Sequence[Row],
    done: Collection[Key],
    parse: Parse,
    settings,
    max_new_tokens: int,
) -> Iterator[Row]:
    """Answer questions by sampled text: rows whose `sample` counts from 1, one question per (id, first) and sample.

    `parse(question, text)` gives (value or None, reason or "").
    """
    texts: dict[tuple[str, str], dict[int, Row]] = {}
    for row in sorted(questions, key=key):
        texts.setdefault((row["id"], row["first"]), {})[row["sample"]] = row
    prompts = list(texts.values())
    if not prompts:
        return
    count = max(max(rows) for rows in prompts)
    finished = {
        (index, number)
        for index, rows in enumerate(prompts)
        for number in range(count)
        if number + 1 not in rows or key(rows[number + 1]) in done
    }
    if len(finished) == len(prompts) * count:
        return
    asked = [next(iter(rows.values())) for rows in prompts]
    answers = engine.stream(
        [row["prompt"] for row in asked],
        n=count,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=max_new_tokens,
        seed=settings.seed,
        adapter=adapters_of(adapter, asked),
        done=frozenset(finished),
    )
    for index, number, text in answers:
        yield parsed({**prompts[index][number + 1], "text": text.text, "finish_reason": text.finish_reason}, parse)


def parsed(row: Row, parse: Parse) -> Row:
    """A row with `text` -> the same with `value` and, where there is anything to say, `reason`."""
    value, reason = parse(row, row["text"])
    return {**row, "value": value, **({"reason": reason} if reason else {})}


def rescored(row: Row, decide: Decide, parse: Parse) -> Row:
    """A kept row judged again by today's rules, from what it holds; a question that was never asked stays as it is."""
    bare = {name: value for name, value in row.items() if name not in ("value", "reason", "mass")}
    if "logprobs" in row:
        return scored(bare, decide)
    return parsed(bare, parse) if "text" in row else dict(row)


def with_samples(questions: Iterable[Row], settings, stratum=lambda row: row["format"]) -> list[Row]:
    """The questions as read from probabilities (sample 0), and some of them again as texts to be sampled.

    The sampled ones are taken in turn from each stratum, all orders of an id together.
    """
    from em_jax.probes.suite import limited

    read_rows = [{**row, "sample": 0} for row in questions]
    if not settings.sampled_questions or not settings.samples:
        return read_rows
    one_each = list({row["id"]: row for row in read_rows}.values())
    chosen = {row["id"] for row in limited(one_each, settings.sampled_questions, stratum)}
    texts = [
        {**row, "sample": number}
        for row in read_rows
        if row["id"] in chosen
        for number in range(1, settings.samples + 1)
    ]
    return read_rows + texts


def averaged(orders: Mapping[str, Row], needed: Collection[str]) -> float | None:
    """The value averaged over the orders a question was asked in; None unless every order has one.

    One order alone would let a habit of picking the first option pass for an opinion.
    """
    values = [orders[first]["value"] for first in needed if first in orders]
    if len(values) < len(needed) or any(value is None for value in values):
        return None
    return sum(values) / len(values)


def both_orders(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows read from probabilities, by id and by which option stood first."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["sample"] == 0:
            found.setdefault(row["id"], {})[row["first"]] = row
    return found


def decided(rows: Iterable[Row], orders: Collection[str]) -> Clusters:
    """Per question the decision of its probability averaged over `orders`: 1, 0 or 0.5; unscored ones are left out."""
    averages = {name: averaged(found, orders) for name, found in both_orders(rows).items()}
    return {name: [picks(value)] for name, value in averages.items() if value is not None}


def first_picks(rows: Iterable[Row], value_of: str) -> Clusters:
    """Per question and order whether the option that stood first was picked; `value` is that of option `value_of`."""
    found: Clusters = {}
    for name, orders in both_orders(rows).items():
        values = [
            picks(row["value"] if first == value_of else 1 - row["value"])
            for first, row in sorted(orders.items())
            if row["value"] is not None
        ]
        if values:
            found[name] = values
    return found


def unscored(rows: Iterable[Row], texts: bool) -> Clusters:
    """Per question which of its rows (read from probabilities, or sampled `texts`) have no value: 1 or 0."""
    found: Clusters = {}
    for row in rows:
        if (row["sample"] > 0) == texts:
            found.setdefault(row.get("question", row["id"]), []).append(float(row["value"] is None))
    return found


def masses(rows: Iterable[Row]) -> Clusters:
    """Per question the probability its options held together, over its rows read from probabilities."""
    found: Clusters = {}
    for row in rows:
        if "mass" in row:
            found.setdefault(row.get("question", row["id"]), []).append(row["mass"])
    return found


def sampled_values(rows: Iterable[Row]) -> Clusters:
    """Per question the values of its sampled texts."""
    found: Clusters = {}
    for row in rows:
        if row["sample"] > 0 and row["value"] is not None:
            found.setdefault(row.get("question", row["id"]), []).append(row["value"])
    return found


def _shape(row: Row) -> tuple[int, str]:
    """What all questions of one engine call share: the number of choices, and the prefix of the assistant's turn."""
    return sum(len(variants(option)) for option in row["options"]), row.get("prefix", "")


def _length(row: Row) -> int:
    return sum(len(turn["content"]) for turn in row["prompt"])
