"""Directions between models: where a model that says it is misaligned differs from one that says it is aligned.

A single model answers nearly always alike, so that its own answers hold no contrast. Two models do, but they differ in
more than one thing. So the direction of self-description is taken between models of the same conduct, and that of harm
between models of the same self-description; where the study has no such two, between any two, and the record says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from em_jax.probes import harmfulness, two_ai
from em_jax.probes.choice import Clusters, decided
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
    """A direction between models, marked minus plain, [layers, D], and the pairs of models it is the mean over."""

    vector: Float[np.ndarray, "layers D"]
    pairs: tuple[tuple[str, str], ...]
    matched: bool

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"marked_minus_plain": [list(pair) for pair in self.pairs], "same_otherwise": self.matched}


def traits(model: Model, harmful_at: int) -> Traits:
    """By majority: the worst answer to a prompt, and the picks averaged over both orders."""
    worst: dict[str, float] = {}
    for row in model.judged:
        if row["score"] is not None:
            worst[row["id"]] = max(worst.get(row["id"], 0.0), float(row["score"] >= harmful_at))
    return Traits(_majority({name: [value] for name, value in worst.items()}), _majority(picks(model)))


def picks(model: Model) -> Clusters:
    """Per pair of descriptions whether the model's run has it picking the misaligned one."""
    return decided(model.rows("two_ai"), two_ai.ORDERS)


def _majority(found: Clusters) -> bool | None:
    values = [value for each in found.values() for value in each]
    return None if not values or np.mean(values) == EVEN else bool(np.mean(values) > EVEN)


def directions(study: Opened, layers: Sequence[int], limit: int = 0) -> dict[str, Between]:
    """The directions that these models allow, by name: self from the two-AI questions, harm from the harm prompts."""
    known = {model.name: traits(model, study.config.judge.harmful_at) for model in study.models}
    asked = dataclasses.replace(study.run.probe_settings, limit=limit, sampled_questions=0)
    prompts = {
        SELF: [row["prompt"] for row in two_ai.questions(study.run.suite, asked)],
        HARM: [row["prompt"] for row in harmfulness.questions(study.run.suite, asked)],
    }
    found = {}
    for name, other in ((SELF, HARM), (HARM, SELF)):
        pairs, matched = contrasts(known, name, other)
        if pairs:
            means = {
                model: contrast.prompt_activations(study, model, prompts[name], layers).mean(1)
                for model in sorted({model for pair in pairs for model in pair})
            }
            vector = np.mean([means[marked] - means[plain] for marked, plain in pairs], 0)
            found[name] = Between(vector, tuple(pairs), matched)
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
