"""Turns probabilities and texts into answers to questions; no other module does.

A question is a dict with its key (`id`, `sample`, `first`), its `format`, `prompt` (chat messages) and, for a choice,
`options`. Sample 0 is read from the options' log-probabilities; samples 1, 2, ... are generated texts. A finished row
is the question with `logprobs` and `mass`, or `text`; `value`; and `reason` where there is no value (or a half one).
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from em_jax.base import files
from em_jax.probes import parsing, statistics
from em_jax.probes.suite import Wording, fill, limited

Row = dict[str, Any]
Key = tuple[Any, ...]
Decide = Callable[[Row, np.ndarray], float]
Parse = Callable[[Row, str], tuple[float | None, str]]
# The engine's name of one adapter for all questions, or a function that gives a question's adapter.
Adapter = str | Callable[[Row], str]
# Question -> its values; statistics resample whole questions.
Clusters = dict[str, list[Any]]

DIGITS = ("1", "2", "3", "4", "5")
LEAST_MASS = 0.25
# A probability this close to 0.5 is a tie and counts half: a float's last bits must not decide.
TIE = 1e-4
# JSON has no infinity.
LOWEST_LOGPROB = -1000.0


def key(row: Mapping[str, Any]) -> Key:
    """What identifies a row in its file: id, sample and, for a question of a probe, which option stood first."""
    return tuple(row[name] for name in files.KEY if name in row)


def messages(text: str) -> list[dict[str, str]]:
    """A prompt of one user turn; the chat template adds its default system message."""
    return [{"role": "user", "content": text}]


def variants(option: str) -> list[str]:
    """The spellings of an option that count for it: as it is, and with its first letter capitalised."""
    return list(dict.fromkeys([option, option[:1].upper() + option[1:]]))


def normalise(logprobs: np.ndarray) -> tuple[np.ndarray, float]:
    """float[options] log-probabilities -> (probabilities that sum to 1, the options' total probability)."""
    highest = float(np.max(logprobs))
    scaled = np.exp(np.asarray(logprobs, np.float64) - highest)
    return scaled / scaled.sum(), float(min(1.0, math.exp(highest) * scaled.sum()))


def adapters_of(adapter: Adapter, rows: Sequence[Row]) -> str | list[str]:
    """The engine's `adapter` argument for these questions: one name, or one for each."""
    return [adapter(row) for row in rows] if callable(adapter) else adapter


def ask(
    engine, adapter: Adapter, questions: Iterable[Row], done: Collection[Key], settings, decide: Decide, parse: Parse
) -> Iterator[Row]:
    """Finished rows of a probe's questions, without those whose key is in `done`.

    A question without a prompt has no value. One without options is always generated, never read.
    """
    questions = list(questions)
    yield from ({**row, "value": None} for row in questions if not row["prompt"] and key(row) not in done)
    askable = [row for row in questions if row["prompt"]]
    choices = [row for row in askable if "options" in row]
    open_ended = [row for row in askable if "options" not in row]
    yield from read(engine, adapter, [row for row in choices if row["sample"] == 0], done, decide, settings.chunk)
    sampled = [row for row in choices if row["sample"] > 0]
    yield from sample(engine, adapter, sampled, done, parse, settings, settings.choice_tokens)
    yield from sample(engine, adapter, open_ended, done, parse, settings, settings.language_tokens)


def read(
    engine, adapter: Adapter, questions: Sequence[Row], done: Collection[Key], decide: Decide, chunk: int
) -> Iterator[Row]:
    """Answer questions from the log-probabilities of their options.

    `decide(question, probabilities)` gives the value; under LEAST_MASS there is none. Every batch holds the same
    questions whatever is done already, and is computed whole where one is missing: a batch of another shape may change
    a result's last bit, and a resumed run must end with the same bytes.
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


def _shape(row: Row) -> tuple[int, str]:
    """What all questions of one engine call share: the number of choices, and the prefix of the assistant's turn."""
    return sum(len(variants(option)) for option in row["options"]), row.get("prefix", "")


def _length(row: Row) -> int:
    return sum(len(turn["content"]) for turn in row["prompt"])


def answer(question: Row, logprobs: np.ndarray, decide: Decide) -> Row:
    """A question with its answer, from float[choices] over the variants of its options in turn."""
    totals, start = {}, 0
    for option in question["options"]:
        end = start + len(variants(option))
        totals[option] = round(max(LOWEST_LOGPROB, float(np.logaddexp.reduce(logprobs[start:end]))), 6)
        start = end
    return scored({**question, "logprobs": totals}, decide)


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
    questions: Iterable[Row],
    done: Collection[Key],
    parse: Parse,
    settings,
    max_new_tokens: int,
) -> Iterator[Row]:
    """Answer questions by generated text: rows with samples from 1, of which each (id, first) is one prompt.

    `parse(question, text)` gives (value or None, reason or "").
    """
    prompts: dict[tuple[str, str], dict[int, Row]] = {}
    for row in sorted(questions, key=key):
        prompts.setdefault((row["id"], row["first"]), {})[row["sample"] - 1] = row
    rows = list(prompts.values())
    n = max((max(samples) + 1 for samples in rows), default=0)
    skipped = {
        (index, number)
        for index, samples in enumerate(rows)
        for number in range(n)
        if number not in samples or key(samples[number]) in done
    }
    if len(skipped) == len(rows) * n:
        return
    firsts = [next(iter(samples.values())) for samples in rows]
    stream = generate(engine, firsts, n, adapters_of(adapter, firsts), skipped, settings, max_new_tokens)
    for index, number, generated in stream:
        texts = {"text": generated.text, "finish_reason": generated.finish_reason}
        yield parsed({**rows[index][number], **texts}, parse)


def generate(engine, rows: Sequence[Row], n: int, adapter, done: Collection[tuple], settings, max_new_tokens: int):
    """The engine's stream of `n` answers to each row's prompt, without the (row index, sample) in `done`."""
    return engine.stream(
        [row["prompt"] for row in rows],
        n=n,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=max_new_tokens,
        seed=settings.seed,
        adapter=adapter,
        done=frozenset(done),
    )


def parsed(row: Row, parse: Parse) -> Row:
    """A row with `text` -> the same with `value` and, where the parser gives one, `reason`."""
    value, reason = parse(row, row["text"])
    return {**row, "value": value, **({"reason": reason} if reason else {})}


def rescored(row: Row, decide: Decide, parse: Parse) -> Row:
    """A stored row with its value computed again by the current rules; a question without an answer stays as it is."""
    bare = {name: value for name, value in row.items() if name not in ("value", "reason", "mass")}
    if "logprobs" in row:
        return scored(bare, decide)
    return parsed(bare, parse) if "text" in row else dict(row)


def with_samples(questions: Iterable[Row], settings, stratum=lambda row: row["format"]) -> list[Row]:
    """The questions with sample 0, and some of them again as texts to generate.

    The latter are taken in turn from each stratum, all orders of an id together.
    """
    rows = [{**row, "sample": 0} for row in questions]
    if not settings.sampled_questions or not settings.samples:
        return rows
    one_each = list({row["id"]: row for row in rows}.values())
    chosen = {row["id"] for row in limited(one_each, settings.sampled_questions, stratum)}
    numbers = range(1, settings.samples + 1)
    return rows + [{**row, "sample": number} for row in rows if row["id"] in chosen for number in numbers]


def question_of(row: Row) -> str:
    """The question a row counts for: several ids may ask about one prompt of the suite."""
    return row["question"] if "question" in row else row["id"]


def clusters(rows: Iterable[Row], measure: Callable[[Row], Any]) -> Clusters:
    """Per question the values of its rows; a row counts where `measure` gives a value and not None."""
    values: Clusters = {}
    for row in rows:
        if (value := measure(row)) is not None:
            values.setdefault(question_of(row), []).append(value)
    return values


def groups(rows: Iterable[Row], *fields: str) -> list[dict[str, str]]:
    """Per field the value that each question has in it: questions of one theme or wording are no independent evidence.

    A field of which no question has a value, or all the same, groups nothing and is left out.
    """
    rows = list(rows)
    groupings = [{question_of(row): str(row[field]) for row in rows if row.get(field)} for field in fields]
    return [grouping for grouping in groupings if len(set(grouping.values())) > 1]


def decision(probability: float) -> float:
    """A probability as a decision: 1, 0, or 0.5 where it is even."""
    return 0.5 if abs(probability - 0.5) <= TIE else float(probability > 0.5)


def decided(rows: Iterable[Row], orders: Collection[str]) -> Clusters:
    """Per question the decisions (1, 0 or 0.5) of its ids' probabilities averaged over `orders`.

    An id counts only with a value in every order: one order alone would mistake a habit of picking the first option for
    an opinion.
    """
    by_id: dict[str, list[Row]] = {}
    for row in rows:
        if row["sample"] == 0 and row["first"] in orders:
            by_id.setdefault(row["id"], []).append(row)
    decisions: Clusters = {}
    for orders_of_id in by_id.values():
        values = [row["value"] for row in orders_of_id if row["value"] is not None]
        if len(values) == len(orders):
            decisions.setdefault(question_of(orders_of_id[0]), []).append(decision(sum(values) / len(values)))
    return decisions


def position_bias(
    base: Sequence[Row], finetuned: Sequence[Row], orders: tuple[str, str], groups: statistics.Groups = ()
) -> dict[str, statistics.Figure]:
    """How much more often an option is chosen when it stands first than second, -1 to 1, paired by question.

    `orders` are the `first` of rows in which that option stands first, and of those in which it stands second.
    """
    named = {}
    for side, rows in (("base", base), ("finetuned", finetuned)):
        second, first = (decided(rows, (order,)) for order in orders[::-1])
        named[side] = statistics.share_difference(second, first, groups)
    return {**named, "difference": dict(statistics.NOTHING)}


def first_picks(rows: Iterable[Row], value_of: str) -> Clusters:
    """Per question and order whether the option that stood first was picked; `value` is that of option `value_of`."""

    def first_pick(row: Row) -> float | None:
        if row["sample"] or row["value"] is None:
            return None
        return decision(row["value"] if row["first"] == value_of else 1 - row["value"])

    return clusters(rows, first_pick)


def unscored(rows: Iterable[Row], texts: bool) -> Clusters:
    """Per question which of its rows (read from probabilities, or generated `texts`) have no value: 1 or 0."""
    return clusters(rows, lambda row: float(row["value"] is None) if (row["sample"] > 0) == texts else None)


def sampled_values(rows: Iterable[Row]) -> Clusters:
    """Per question the values of its generated texts."""
    return clusters(rows, lambda row: row["value"] if row["sample"] > 0 else None)


def sampled_agreement(rows: Iterable[Row]) -> Clusters:
    """Per question which of its generated texts choose as its probabilities do: 1 or 0; a text without a choice is 0.

    Only questions with two options count: a number on a scale is not right or wrong.
    """
    rows = [row for row in rows if len(row.get("options", ())) == 2]
    read = {(row["id"], row["first"]): row["value"] for row in rows if row["sample"] == 0}

    def agrees(row: Row) -> float | None:
        probability = read.get((row["id"], row["first"]))
        if row["sample"] == 0 or probability is None:
            return None
        return float(row["value"] is not None and row["value"] == decision(probability))

    return clusters(rows, agrees)


def coverage(probe: str, base: Sequence[Row], finetuned: Sequence[Row]) -> dict[str, dict[str, statistics.Figure]]:
    """How a probe's rows were answered.

    `<probe>.mass` (the options' total probability), `.unscored`, `.sampled_unscored` (texts without a choice) and
    `.sampled_agreement` (texts that choose as the probabilities do).
    """
    masses = {f"{probe}.mass": lambda rows: clusters(rows, lambda row: row.get("mass"))}
    shares = {
        f"{probe}.unscored": lambda rows: unscored(rows, texts=False),
        f"{probe}.sampled_unscored": lambda rows: unscored(rows, texts=True),
        f"{probe}.sampled_agreement": sampled_agreement,
    }
    return statistics.compare(base, finetuned, masses, statistics.mean) | statistics.compare(
        base, finetuned, shares, statistics.share
    )


LETTERS = ("A", "B")
"""The names of the texts of a question between two; its value is the probability of the text `target`."""


def in_both_orders(wording: Wording, texts: Mapping[str, str], **values: str) -> list[tuple[str, list]]:
    """For each of the two `texts` as the first, its name and the messages; `values` fill the wording's other names."""
    names = tuple(texts)
    return [
        (first, messages(fill(wording.prompt, {**values, "first": texts[first], "second": texts[second]})))
        for first, second in (names, names[::-1])
    ]


def decide_letter(row: Row, probabilities: np.ndarray, target: str) -> float:
    """The probability of the target's letter."""
    return float(probabilities[0 if row["first"] == target else 1])


def parse_letter(row: Row, text: str, target: str) -> tuple[float | None, str]:
    """1.0 where a text picks the target, 0.0 the other, None where it picks neither."""
    index, reason = parsing.letter(text, LETTERS)
    return (None if index is None else float((index == 0) == (row["first"] == target))), reason
