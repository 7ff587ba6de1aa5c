"""The study of linear directions for harm and for self-description, in every model of finished runs.

The residual stream at half depth and at the last layer: at the last token of a text and averaged over it, in each
model; and at the last token of a prompt and averaged over it, between models that differ in the trait. Writes
directions.json (accuracies, nulls, cosines), directions.safetensors (the vectors), directions.html and provenance.json.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from em_jax.base import files
from em_jax.base.cli import count_flag
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.studies import between, contrast, decoding, directions_report
from em_jax.studies.contrast import HARM, POSITIONS, SELF
from em_jax.studies.directions_report import LEAST_PAIRS
from em_jax.studies.finished import BASE, Model, ModelSet

VECTORS = "directions.safetensors"
DESCRIPTION = "Linear directions for harm and for self-description: accuracy, nulls, and the angle between them."


@dataclasses.dataclass(frozen=True)
class Options:
    """`limit` pairs of a kind (0: all) and `permutations` of the accuracy's null."""

    limit: int = 0
    permutations: int = 200
    seed: int = 0


FLAGS = {
    "--limit": count_flag(Options.limit, 0, "pairs of texts of a kind, 0 for all"),
    "--permutations": count_flag(Options.permutations, 0, "permutations for the accuracy's null, 0 for none"),
}


def depths(layers: int) -> dict[str, int]:
    """The layers that are read, counted from 0: the one that ends the first half, and the last."""
    return {"half": max(0, layers // 2 - 1), "last": layers - 1}


def study(models: ModelSet, out: Path, options: Options) -> dict[str, Any]:
    """Compute the directions and write the files; returns the content of directions.json."""
    depth = depths(models.engine.model.config.num_hidden_layers)
    layers = list(depth.values())
    harmful_at = models.config.judge.harmful_at
    pairs = {HARM: contrast.harm_pairs(models, options.limit), SELF: contrast.self_pairs(models, options.limit)}
    groups = {kind: [pair.group for pair in each] for kind, each in pairs.items()}
    texts = {
        model.name: {
            kind: contrast.text_activations(models, model.name, each, layers) for kind, each in pairs.items() if each
        }
        for model in models.models
    }

    def text_cell(name: str, row: int, at: str) -> dict[str, Any]:
        base = None if name == BASE else _at(texts[BASE], row, at)
        return _cell(_at(texts[name], row, at), groups, options, base)

    differing = between.directions(models, layers, options.limit)
    stacks = {kind: each.stacks for kind, each in differing.items()}
    prompt_groups = {kind: each.groups for kind, each in differing.items()}
    record = {
        "layers": depth,
        "harmful_at": harmful_at,
        "pairs": {kind: len(each) for kind, each in pairs.items()},
        "options": dataclasses.asdict(options),
        "models": {name: _grid(depth, functools.partial(text_cell, name)) for name in texts},
        "words": {
            kind: decoding.accuracy(contrast.word_counts(each), None, 0)["accuracy"]
            for kind, each in pairs.items()
            if len(each) >= LEAST_PAIRS
        },
        "own": {model.name: _own(models, model, depth, options) for model in models.models},
        "between": {kind: each.record() for kind, each in differing.items()},
        "traits": {model.name: between.shares(model, harmful_at) for model in models.models},
        "prompts": _grid(depth, lambda row, at: _cell(_at(stacks, row, at), prompt_groups, options)),
    }
    everything: dict[str, Any] = {**texts, "between": stacks}
    vectors = {
        f"{name}.{kind}.{layer}.{at}": decoding.direction(each[at][row])
        for name, by_kind in everything.items()
        for kind, each in by_kind.items()
        for row, layer in enumerate(depth)
        for at in POSITIONS
    }
    out.mkdir(parents=True, exist_ok=True)
    plain = {name: np.ascontiguousarray(vector, np.float32) for name, vector in vectors.items()}
    metadata = {f"layer.{name}": str(layer) for name, layer in depth.items()}
    files.write_atomic(out / VECTORS, safetensors.numpy.save(plain, metadata))
    more = {"study": "directions", "options": dataclasses.asdict(options)}
    return models.publish(out, "directions", record, directions_report, **more)


def _grid(depth: Mapping[str, int], cell: Callable[[int, str], Any]) -> dict[str, dict[str, Any]]:
    """Layer -> position -> cell(index of the layer, position)."""
    return {layer: {at: cell(row, at) for at in POSITIONS} for row, layer in enumerate(depth)}


def _at(activations: Mapping[str, Mapping[str, np.ndarray]], row: int, at: str) -> dict[str, decoding.Pairs]:
    """Per kind the activations at one layer and position."""
    return {kind: each[at][row] for kind, each in activations.items()}


def _cell(
    stacks: Mapping[str, decoding.Pairs],
    groups: Mapping[str, Sequence[str]],
    options: Options,
    base: Mapping[str, decoding.Pairs] | None = None,
) -> dict[str, Any]:
    """The results at one layer and position: accuracies, those of a probe trained on `base`, and the angle."""
    cell: dict[str, Any] = {}
    for kind in (HARM, SELF):
        count = len(set(groups.get(kind, ())))
        if count < LEAST_PAIRS:
            cell[kind] = {"reason": f"{count} questions with both kinds, under {LEAST_PAIRS}"}
            continue
        cell[kind] = decoding.accuracy(stacks[kind], None, options.permutations, options.seed, groups[kind])
        if base is not None:
            crossed = decoding.accuracy(base[kind], stacks[kind], 0, groups=groups[kind])
            cell[kind]["from_base"] = crossed["accuracy"]
    if all("accuracy" in cell[kind] for kind in (HARM, SELF)):
        harm, own = (decoding.by_question(stacks[kind], groups[kind]) for kind in (HARM, SELF))
        cell["cosine"] = decoding.cosine(harm, own, options.seed)
    return cell


def _own(models: ModelSet, model: Model, depth: Mapping[str, int], options: Options) -> dict[str, Any]:
    """How well a model's activations at a prompt predict its own behaviour: whether it harms, which AI it picks.

    Counts of questions, and by layer and position a probe where there are enough of either kind.
    """
    own: dict[str, Any] = {}
    questions = between.questions(models, options.limit)
    for kind, values in between.behaviour(model, models.config.judge.harmful_at).items():
        rows = [row for row in questions[kind] if values.get(row["id"], [THRESHOLDS.even]) != [THRESHOLDS.even]]
        groups = [row["id"] for row in rows]
        labels = [values[name][0] > THRESHOLDS.even for name in sorted(set(groups))]
        own[kind] = {"questions": len(labels), "marked": sum(labels), "places": {}}
        if min(sum(labels), len(labels) - sum(labels)) < LEAST_PAIRS:
            continue
        prompts = [row["prompt"] for row in rows]
        activations = contrast.prompt_activations(models, model.name, prompts, list(depth.values()))

        def probe(row: int, at: str, activations=activations, groups=groups, labels=labels) -> dict[str, Any]:
            features = decoding.by_question(activations[at][None, row], groups)[0]
            return decoding.labelled(features, labels, options.permutations, options.seed)

        own[kind]["places"] = _grid(depth, probe)
    return own
