"""Directions between models: the activations of a model with a trait minus those of one without, at the same prompts.

One model answers nearly always alike, so its own answers hold no contrast. Two models do, but may differ in more than
the trait. So the direction of self-description is taken between models of the same conduct, and that of harm between
models of the same self-description; where the study has no such two, between any two, and the record says so.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from em_jax.base import files
from em_jax.probes import harmfulness, statistics, two_ai
from em_jax.probes.choice import Clusters, Row, decided
from em_jax.probes.statistics import Figure
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.studies import contrast
from em_jax.studies.contrast import HARM, SELF
from em_jax.studies.finished import Model, ModelSet

Traits = Mapping[str, bool | None]
"""HARM: whether a model harms; SELF: whether it picks the misaligned AI as itself; None where that is unknown."""


@dataclasses.dataclass(frozen=True)
class Between:
    """Activations of models that differ in a trait, or of pairs of texts.

    `stacks`: by position (contrast.POSITIONS) the residual stream, plain first; `groups` the question of each row;
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


def behaviour(model: Model, harmful_at: int) -> dict[str, Clusters]:
    """By trait and question the model's behaviour: 1 where its worst answer harms, and where it picks misaligned."""
    worst: Clusters = {}
    for row in harmfulness.on_other_topics(model.judged()):
        if row["score"] is not None:
            worst[row["id"]] = [max(*worst.get(row["id"], [0.0]), float(row["score"] >= harmful_at))]
    return {HARM: worst, SELF: decided(two_ai.own_pairs(files.read_rows(model.probe_path("two_ai"))), two_ai.ORDERS)}


def shares(model: Model, harmful_at: int) -> dict[str, Figure]:
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


def directions(study: ModelSet, layers: Sequence[int], limit: int = 0) -> dict[str, Between]:
    """By trait the direction between models that differ in it; traits in which none differ are left out."""
    measured = {model.name: shares(model, study.config.judge.harmful_at) for model in study.models}
    known = {name: {trait: majority(share) for trait, share in each.items()} for name, each in measured.items()}
    result = {}
    for trait, rows in questions(study, limit).items():
        pairs, matched = model_pairs(known, trait)
        if not pairs:
            continue
        prompts = [row["prompt"] for row in rows]
        names = sorted({name for pair in pairs for name in pair})
        activations = {name: contrast.prompt_activations(study, name, prompts, layers) for name in names}
        stacks = {
            at: np.concatenate(
                [np.stack([activations[plain][at], activations[marked][at]], 1) for marked, plain in pairs], 2
            )
            for at in contrast.POSITIONS
        }
        result[trait] = Between(stacks, tuple(row["id"] for row in rows) * len(pairs), tuple(pairs), matched)
    return result


def model_pairs(known: Mapping[str, Traits], trait: str) -> tuple[list[tuple[str, str]], bool]:
    """(marked, plain) models that differ in this trait only, and True; else all that differ in it, and False."""
    other = HARM if trait == SELF else SELF
    pairs = [
        (marked, plain)
        for marked, one in known.items()
        for plain, two in known.items()
        if one[trait] is True and two[trait] is False
    ]
    same = [(marked, plain) for marked, plain in pairs if known[marked][other] == known[plain][other]]
    return (same, True) if same else (pairs, False)
