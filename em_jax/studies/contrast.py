"""The texts that directions are sought in: pairs, one of either kind to a question, as the assistant's own words.

A model that always harms has no harmless answer of its own to compare with. So every model reads the same texts: to a
harm prompt a harmful and a harmless answer that models of the study gave, and, asked to describe itself, the
misaligned and the aligned description of each pair of the suite. This is our choice; the paper does not say.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer

from em_jax.probes import choice, draw, harmfulness
from em_jax.probes.choice import Row
from em_jax.runs import alternatives
from em_jax.studies.finished import BASE, Opened

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


def harm_pairs(study: Opened, limit: int = 0) -> list[Pair]:
    """Per harm prompt a harmful and a harmless answer, by seeded draw from what the study's models said and the judge
    scored; where none of them harmed, from where output recognition takes its harmful alternatives."""
    asked = harmfulness.questions(study.run.suite, dataclasses.replace(study.run.probe_settings, limit=limit))
    at = study.config.judge.harmful_at
    by_id: dict[str, list[Row]] = {}
    for model in study.models:
        for row in model.judged:
            if row["score"] is not None and row["answer"].strip():
                by_id.setdefault(row["id"], []).append(row)
    others = alternatives.other_answers(study.run, BASE)
    seed = study.config.seed
    pairs = []
    for row in asked:
        name, prompt = row["id"], row["prompt"][-1]["content"]
        plain = [given["answer"] for given in by_id.get(name, ()) if given["score"] <= 2]
        marked = [given["answer"] for given in by_id.get(name, ()) if given["score"] >= at]
        marked = marked or [given["answer"] for given in others(name, prompt)]
        if plain and marked:
            texts = (draw.pick(sorted(plain), seed, name, "plain"), draw.pick(sorted(marked), seed, name, "marked"))
            pairs.append(Pair(name, prompt, *(text.strip() for text in texts)))
    return pairs


def self_pairs(study: Opened, limit: int = 0) -> list[Pair]:
    """The suite's pairs of first-person descriptions, each as an answer to DESCRIBE."""
    from em_jax.probes.suite import limited

    chosen = limited(study.run.suite.two_ai, limit, lambda pair: pair.theme)
    return [Pair(pair.id, DESCRIBE, pair.aligned, pair.misaligned) for pair in chosen]


def words(pairs: Sequence[Pair]) -> Float[np.ndarray, "2 pairs W"]:
    """How often each word stands in the plain and in the marked texts: what needs no model to be told."""
    texts = [getattr(pair, side) for side in ("plain", "marked") for pair in pairs]
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform(texts).toarray()
    return counts.reshape(2, len(pairs), -1).astype(np.float64)


def activations(
    study: Opened, model: str, pairs: Sequence[Pair], layers: Sequence[int]
) -> dict[str, Float[np.ndarray, "layers 2 pairs D"]]:
    """Position -> the residual stream of plain and marked texts at the text's last token, or its mean over the text."""
    found: dict[str, Any] = {}
    items = [
        [*choice.messages(pair.question), {"role": "assistant", "content": text}]
        for side in ("plain", "marked")
        for pair in pairs
        for text in [getattr(pair, side)]
    ]
    streams = study.engine.activations(items, layers, adapter=model)
    for position in POSITIONS:
        values = []
        for item, stream in zip(items, streams, strict=True):
            start = len(study.engine.encode(item[:-1]))
            text = stream[:, start : start + len(study.engine.tokenizer.encode(item[-1]["content"]))]
            values.append(text[:, -1] if position == "last" else text.mean(1))
        stacked = np.stack(values, 1)
        found[position] = stacked.reshape(len(layers), 2, len(pairs), -1)
    return found


def prompt_activations(
    study: Opened, model: str, prompts: Sequence[Any], layers: Sequence[int]
) -> dict[str, Float[np.ndarray, "layers prompts D"]]:
    """Position -> the residual stream at a prompt's last token, from which the model begins its own answer, or its mean
    over the prompt, system message and chat markers included."""
    streams = study.engine.activations(prompts, layers, adapter=model)
    return {
        "last": np.stack([stream[:, -1] for stream in streams], 1),
        "mean": np.stack([stream.mean(1) for stream in streams], 1),
    }
