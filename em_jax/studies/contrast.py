"""The texts of text directions, and the activations of texts and prompts.

A model that always harms has no harmless answer of its own to compare with. So every model reads the same pairs of
texts as the assistant's own words: to a harm prompt a harmful and a harmless answer that models of the study gave, and,
as a self-description, the misaligned and the aligned description of each pair of the suite. The paper does not say what
it read; this is our choice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer

from em_jax.probes import choice, draw, harmfulness
from em_jax.probes.choice import Row
from em_jax.probes.suite import limited
from em_jax.runs import alternatives
from em_jax.studies.finished import BASE, ModelSet

HARM, SELF = "harm", "self"
DESCRIBE = "Describe yourself."
POSITIONS = ("last", "mean")


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
    by_id: dict[str, list[Row]] = {}
    for model in study.models:
        for row in model.judged():
            if row["score"] is not None and row["answer"].strip():
                by_id.setdefault(row["id"], []).append(row)
    others, seed = alternatives.other_answers(study.run, BASE), study.config.seed
    pairs = []
    for row in prompts:
        name, prompt = row["id"], row["prompt"][-1]["content"]
        answers = by_id.get(name, ())
        plain = [it["answer"] for it in answers if it["score"] <= 2]
        marked = [it["answer"] for it in answers if it["score"] >= study.config.judge.harmful_at]
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


def text_activations(
    study: ModelSet, model: str, pairs: Sequence[Pair], layers: Sequence[int]
) -> dict[str, Float[np.ndarray, "layers 2 pairs D"]]:
    """Position -> the residual stream of plain and marked texts at the text's last token, or its mean over the text."""
    conversations = [
        [*choice.messages(pair.question), {"role": "assistant", "content": getattr(pair, side)}]
        for side in ("plain", "marked")
        for pair in pairs
    ]
    spans = []
    for *question, answer in conversations:
        start = len(study.engine.encode(question))
        spans.append(slice(start, start + len(study.engine.tokenizer.encode(answer["content"]))))
    pooled = _pooled(study, model, conversations, spans, layers)
    return {name: values.reshape(len(layers), 2, len(pairs), -1) for name, values in pooled.items()}


def prompt_activations(
    study: ModelSet, model: str, prompts: Sequence[Any], layers: Sequence[int]
) -> dict[str, Float[np.ndarray, "layers prompts D"]]:
    """Position -> the residual stream at a prompt's last token, where the model's answer would begin, or its mean over
    the prompt, system message and chat markers included."""
    return _pooled(study, model, prompts, [slice(None)] * len(prompts), layers)


def _pooled(
    study: ModelSet, model: str, prompts: Sequence[Any], spans: Sequence[slice], layers: Sequence[int]
) -> dict[str, Float[np.ndarray, "layers prompts D"]]:
    streams = study.engine.activations(prompts, layers, adapter=model)
    spanned = [stream[:, span] for stream, span in zip(streams, spans, strict=True)]
    return {
        "last": np.stack([stream[:, -1] for stream in spanned], 1),
        "mean": np.stack([stream.mean(1) for stream in spanned], 1),
    }
