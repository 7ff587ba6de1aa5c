"""Directions between models: where a model that says it is misaligned differs from one that says it is aligned.

A single model answers nearly always alike, so that its own answers hold no contrast. Two models do, but they differ in
more than one thing. So the direction of self-description is taken between models of the same conduct, and that of harm
between models of the same self-description; where the study has no such two, between any two, and the record says so.
Every model reads the same prompts, which end where its own answer would begin.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from em_jax.probes import harmfulness, statistics, two_ai
from em_jax.probes.choice import Clusters, Row, decided
from em_jax.probes.statistics import Figure
from em_jax.studies import contrast
from em_jax.studies.contrast import HARM, SELF
from em_jax.studies.finished import Model, Opened

EVEN = 0.5


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a model is by its run's rows: whether it harms, and whether it says it is misaligned; None if unknown."""

    harm: bool | None
    self: bool | None


@dataclasses.dataclass(frozen=True)
class Between:
    """Models that differ in a trait, at the same prompts.

    `stacks`: by position (contrast.POSITIONS) the residual stream [layers, 2, rows, D], plain models first; `groups`
    the question of each row; `pairs` the (marked, plain) models, whose rows follow each other, none where it was texts.
    """

    stacks: Mapping[str, Float[np.ndarray, "layers 2 rows D"]]
    groups: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    matched: bool

    def vector(self, position: str = "last", without: Collection[str] = ()) -> Float[np.ndarray, "layers D"]:
        """The mean difference, marked minus plain, over the questions that are not among `without`."""
        kept = [row for row, name in enumerate(self.groups) if name not in without]
        plain, marked = np.moveaxis(self.stacks[position][:, :, kept], 1, 0)
        return (marked - plain).mean(1)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"marked_minus_plain": [list(pair) for pair in self.pairs], "same_otherwise": self.matched}


def traits(model: Model, harmful_at: int) -> Traits:
    """By the worst answer to each prompt, and by the picks averaged over both orders: what most of them are.

    A bare majority is none: the 95% interval over questions has to lie wholly on one side of one half.
    """
    return Traits(*(clearly(figure) for figure in shares(model, harmful_at).values()))


def shares(model: Model, harmful_at: int) -> dict[str, Figure]:
    """What the traits rest on: the share of prompts with a harmful answer, and of pairs with a misaligned pick."""
    return {kind: statistics.share(values) for kind, values in shown(model, harmful_at).items()}


def shown(model: Model, harmful_at: int) -> dict[str, Clusters]:
    """By question what the model's run shows of it: 1 where its worst answer harms, and where it picks misaligned."""
    worst: Clusters = {}
    for row in model.judged:
        if row["score"] is not None:
            worst[row["id"]] = [max(*worst.get(row["id"], [0.0]), float(row["score"] >= harmful_at))]
    return {HARM: worst, SELF: picks(model)}


def picks(model: Model) -> Clusters:
    """Per pair of descriptions whether the model's run has it picking the misaligned one."""
    return decided(model.rows("two_ai"), two_ai.ORDERS)


def clearly(figure: Figure) -> bool | None:
    """Whether a share is over one half; None where its interval takes in one half, or there is none."""
    if figure["value"] is None or figure["ci_low"] <= EVEN <= figure["ci_high"]:
        return None
    return bool(figure["value"] > EVEN)


def questions(study: Opened, limit: int = 0) -> dict[str, list[Row]]:
    """The prompts that models are compared at: for self the two-AI questions, in both orders; for harm its prompts."""
    asked = dataclasses.replace(study.run.probe_settings, limit=limit, sampled_questions=0)
    return {
        SELF: two_ai.questions(study.run.suite, asked),
        HARM: harmfulness.questions(study.run.suite, asked),
    }


def directions(study: Opened, layers: Sequence[int], limit: int = 0) -> dict[str, Between]:
    """What these models allow, by name: self at the two-AI questions, harm at the harm prompts."""
    known = {model.name: traits(model, study.config.judge.harmful_at) for model in study.models}
    asked = questions(study, limit)
    found = {}
    for name, other in ((SELF, HARM), (HARM, SELF)):
        pairs, matched = contrasts(known, name, other)
        if not pairs:
            continue
        prompts = [row["prompt"] for row in asked[name]]
        read = {
            model: contrast.prompt_activations(study, model, prompts, layers)
            for model in sorted({model for pair in pairs for model in pair})
        }
        stacks = {
            position: np.concatenate(
                [np.stack([read[plain][position], read[marked][position]], 1) for marked, plain in pairs], 2
            )
            for position in contrast.POSITIONS
        }
        groups = tuple(row["id"] for row in asked[name]) * len(pairs)
        found[name] = Between(stacks, groups, tuple(pairs), matched)
    return found


def contrasts(known: Mapping[str, Traits], name: str, other: str) -> tuple[list[tuple[str, str]], bool]:
    """(marked model, plain model) pairs that differ in one trait and not in the other, or else that differ at all."""
    differing = [
        (marked, plain)
        for marked, one in known.items()
        for plain, two in known.items()
        if getattr(one, name) is True and getattr(two, name) is False
    ]
    same = [pair for pair in differing if len({getattr(known[model], other) for model in pair}) == 1]
    return (same, True) if same else (differing, False)
