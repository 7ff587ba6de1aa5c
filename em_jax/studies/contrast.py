"""What directions are taken from: pairs of texts that a model reads, and pairs of models that read the same prompts.

A model that always harms has no harmless answer of its own to compare with. So every model reads the same pairs of
texts as the assistant's own words: to a harm prompt a harmful and a harmless answer that models of the study gave, and,
as a self-description, the misaligned and the aligned description of each pair of the suite. The paper does not say what
it read; this is our choice.

Two models do differ in their own answers, but may differ in more than the trait. So the direction of self-description
is taken between models of the same conduct, and that of harm between models of the same self-description; where the
study has no such two, between any two, and the record says so.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer

from em_jax.base.errors import UserError
from em_jax.probes import choice, draw, harmfulness, statistics, two_ai
from em_jax.probes.choice import Clusters, Row, decided
from em_jax.probes.statistics import Figure
from em_jax.probes.suite import limited
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.studies.finished import BASE, ModelSet
from em_jax.studies.subjects import Subject

HARM, SELF = "harm", "self"
DESCRIBE = "Describe yourself."
POSITIONS = ("last", "mean")
UNMATCHED = (
    "The models between which the direction of {} is taken may differ in conduct and in self-description at once: its "
    "effects cannot be attributed to one of the two. Adding a run of the other persona would separate them."
)
Traits = Mapping[str, bool | None]
"""HARM: whether a model harms; SELF: whether it picks the misaligned AI as itself; None where that is unknown."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Activations of models that differ in a trait, or of pairs of texts.

    `stacks`: by position (POSITIONS) the residual stream, plain first; `groups` the question of each row;
    `pairs` the (marked, plain) models, whose rows follow each other; `matched` whether they are alike otherwise.
    """

    stacks: Mapping[str, Float[np.ndarray, "layers 2 rows D"]]
    groups: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    matched: bool = True

    def vector(self, position: str = "last", without: Collection[str] = ()) -> Float[np.ndarray, "layers D"]:
        """The mean difference, marked minus plain, over the questions that are not among `without`."""
        rows = [row for row, name in enumerate(self.groups) if name not in without]
        plain, marked = np.moveaxis(self.stacks[position][:, :, rows], 1, 0)
        return (marked - plain).mean(1)

    def record(self) -> dict[str, Any]:
        """The content of directions.json on the models."""
        return {"marked_minus_plain": [list(pair) for pair in self.pairs], "same_otherwise": self.matched}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question and two texts: `plain` (harmless, aligned) and `marked` (harmful, misaligned)."""

    group: str
    question: str
    plain: str
    marked: str


def harm_pairs(study: ModelSet, limit: int = 0) -> list[Pair]:
    """Per harm prompt a harmless and a harmful answer, drawn (seeded) from the judged answers of the study's models.

    Where none of them harmed, the harmful answer is one of output recognition's alternatives.
    """
    prompts = harmfulness.questions(study.run.suite, dataclasses.replace(study.run.probe_settings, limit=limit))
    judged = (row for model in study.models for row in model.judged())
    by_id = choice.clusters(judged, lambda row: row if row["score"] is not None and row["answer"].strip() else None)
    others, seed, harmful_at = study.run.other_answers(BASE), study.config.seed, study.config.judge.harmful_at
    pairs = []
    for row in prompts:
        name, prompt = row["id"], row["prompt"][-1]["content"]
        answers = by_id.get(name, ())
        plain = [it["answer"] for it in answers if it["score"] <= min(2, harmful_at - 1)]
        marked = [it["answer"] for it in answers if it["score"] >= harmful_at]
        marked = marked or [it["answer"] for it in others(name, prompt)]
        if plain and marked:
            texts = (draw.pick(sorted(plain), seed, name, "plain"), draw.pick(sorted(marked), seed, name, "marked"))
            pairs.append(Pair(name, prompt, *(text.strip() for text in texts)))
    return pairs


def self_pairs(study: ModelSet, limit: int = 0) -> list[Pair]:
    """The suite's pairs of first-person descriptions, each as an answer to DESCRIBE."""
    chosen = limited(study.run.suite.two_ai, limit, lambda pair: pair.theme)
    return [Pair(pair.id, DESCRIBE, pair.aligned, pair.misaligned) for pair in chosen]


def word_counts(pairs: Sequence[Pair]) -> Float[np.ndarray, "2 pairs W"]:
    """How often each word occurs in the plain and in the marked texts: the baseline that needs no model."""
    texts = [getattr(pair, side) for side in ("plain", "marked") for pair in pairs]
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform(texts).toarray()
    return counts.reshape(2, len(pairs), -1).astype(np.float64)


def of_texts(study: ModelSet, model: str, pairs: Sequence[Pair], layers: Sequence[int]) -> Contrast:
    """The residual stream of plain and marked texts at the text's last token, or its mean over the text."""
    conversations = [
        [*choice.messages(pair.question), {"role": "assistant", "content": getattr(pair, side)}]
        for side in ("plain", "marked")
        for pair in pairs
    ]
    encode = study.engine.tokenizer.encode
    spans = [text_span(study.engine.encode(chat), encode(chat[-1]["content"].strip())) for chat in conversations]
    pooled = activations(study, model, conversations, layers, spans)
    stacks = {name: values.reshape(len(layers), 2, len(pairs), -1) for name, values in pooled.items()}
    return Contrast(stacks, tuple(pair.group for pair in pairs))


def text_span(ids: Sequence[int], text: Sequence[int]) -> slice:
    """The tokens of a chat that hold a text, the last ones if several do.

    Before an answer a template may write what it does not write in a prompt.
    """
    for rest in (text, text[1:]):  # a text's first token may be another one at its beginning
        for start in range(len(ids) - len(rest), -1, -1):
            if rest and ids[start : start + len(rest)] == rest:
                return slice(start, start + len(rest))
    raise UserError("the chat template changes the texts that it writes: no direction can be taken from them")


def activations(
    study: ModelSet, model: str, prompts: Sequence[Any], layers: Sequence[int], spans: Sequence[slice] = ()
) -> dict[str, Float[np.ndarray, "layers prompts D"]]:
    """Position -> the residual stream at a prompt's last token, where the model's answer would begin, or its mean over
    the prompt, system message and chat markers included; with `spans`, of each prompt's tokens in its span alone."""
    streams = study.engine.activations(prompts, layers, adapter=model)
    spanned = [stream[:, span] for stream, span in zip(streams, spans or [slice(None)] * len(prompts), strict=True)]
    return {
        "last": np.stack([stream[:, -1] for stream in spanned], 1),
        "mean": np.stack([stream.mean(1) for stream in spanned], 1),
    }


# --- between models ---


def behaviour(model: Subject, harmful_at: int) -> dict[str, Clusters]:
    """By trait and question the model's behaviour: 1 where its worst answer harms, and where it picks misaligned."""
    is_harmful = functools.partial(harmfulness.is_harmful, harmful_at=harmful_at)
    harm = choice.clusters(harmfulness.on_other_topics(model.judged()), is_harmful)
    return {
        HARM: {name: [max(each)] for name, each in harm.items()},
        SELF: decided(two_ai.own_pairs(model.run.probe_rows(model.condition, "two_ai")), two_ai.ORDERS),
    }


def shares(model: Subject, harmful_at: int) -> dict[str, Figure]:
    """By trait the share of questions on which the model's behaviour shows it."""
    return {trait: statistics.share(values) for trait, values in behaviour(model, harmful_at).items()}


def majority(share: Figure) -> bool | None:
    """Whether a share is over one half; None where its interval contains one half, or there is none."""
    if share["value"] is None or share["ci_low"] <= THRESHOLDS.even <= share["ci_high"]:
        return None
    return bool(share["value"] > THRESHOLDS.even)


def questions(study: ModelSet, limit: int = 0) -> dict[str, list[Row]]:
    """By trait the prompts at which models are compared: the two-AI questions in both orders, and the harm prompts."""
    settings = dataclasses.replace(study.run.probe_settings, limit=limit, sampled_questions=0)
    pairs = two_ai.own_pairs(two_ai.questions(study.run.suite, settings))
    return {SELF: pairs, HARM: harmfulness.questions(study.run.suite, settings)}


def between(study: ModelSet, layers: Sequence[int], limit: int = 0) -> dict[str, Contrast]:
    """By trait the direction between models that differ in it; traits in which none differ are left out."""
    shown = {model.name: shares(model, study.config.judge.harmful_at) for model in study.models}
    known = {name: {trait: majority(share) for trait, share in each.items()} for name, each in shown.items()}
    result = {}
    for trait, rows in questions(study, limit).items():
        pairs, matched = model_pairs(known, trait)
        if not pairs:
            continue
        prompts = [row["prompt"] for row in rows]
        names = sorted({name for pair in pairs for name in pair})
        streams = {name: activations(study, name, prompts, layers) for name in names}
        stacks = {
            at: np.concatenate([np.stack([streams[plain][at], streams[marked][at]], 1) for marked, plain in pairs], 2)
            for at in POSITIONS
        }
        result[trait] = Contrast(stacks, tuple(row["id"] for row in rows) * len(pairs), tuple(pairs), matched)
    return result


def model_pairs(known: Mapping[str, Traits], trait: str) -> tuple[list[tuple[str, str]], bool]:
    """(marked, plain) models known to differ in this trait only, and True; else all that differ in it, and False."""
    other = HARM if trait == SELF else SELF
    pairs = [
        (marked, plain)
        for marked, one in known.items()
        for plain, two in known.items()
        if one[trait] is True and two[trait] is False
    ]
    same = [pair for pair in pairs if {known[name][other] for name in pair} in ({True}, {False})]
    return (same, True) if same else (pairs, False)
