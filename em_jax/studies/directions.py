"""The study of linear directions for harm and for self-description, in every model of finished runs.

The residual stream at half depth and at the last layer: at the last token of a text and averaged over it, in each
model; and at the last token of a prompt and averaged over it, between models that differ in the trait. Writes
directions.json (accuracies, nulls, cosines), directions.safetensors (the vectors), directions.html and provenance.json.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from em_jax.base import files
from em_jax.base.cli import count_flag
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.reading import figure_of
from em_jax.report.svg import Drawing
from em_jax.report.text import number
from em_jax.report.vocabulary import CHOICE, KAPPA, SHARE
from em_jax.studies import contrast, decoding
from em_jax.studies.contrast import HARM, POSITIONS, SELF, Contrast
from em_jax.studies.decoding import FOLDS
from em_jax.studies.finished import BASE, ModelSet
from em_jax.studies.page import Section, cell, leaves
from em_jax.studies.sentences import percent, span
from em_jax.studies.subjects import Subject

VECTORS = "directions.safetensors"
DESCRIPTION = "Linear directions for harm and for self-description: accuracy, nulls, and the angle between them."
LEAST_PAIRS = FOLDS
COLOURS = ("base", "coherent", "inverted", "aligned", "narrow", "mixed", "ink")
# Two directions this near a right angle share a twentieth of their variance at most.
ORTHOGONAL = 0.22
TEXTS = {HARM: "harmful from harmless answers", SELF: "misaligned from aligned descriptions"}
BEHAVIOUR = {HARM: "harmful answers", SELF: "misaligned picks"}
LEADS = {
    HARM: "Text: a harmful and a harmless answer to each prompt, as the assistant's own. Prompt: a model that harms "
    "and one that does not, at the same harm prompts.",
    SELF: "Text: a misaligned and an aligned first-person description, as the assistant's own. Prompt: a model that "
    "picks the misaligned AI and one that picks the aligned, at the same two-AI questions.",
}

OWN_LEAD = (
    "Balanced accuracy of a probe for each model's own behaviour (will it harm, which AI will it pick), at the prompt, "
    "on held-out questions; the null permutes the questions' labels."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """`limit` pairs of a kind (0: all) and `permutations` of the accuracy's null."""

    limit: int = 0
    permutations: int = 200


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
    texts = {
        model.name: {kind: contrast.of_texts(models, model.name, each, layers) for kind, each in pairs.items() if each}
        for model in models.models
    }

    def grid(contrasts: Mapping[str, Contrast], base: Mapping[str, Contrast] | None = None) -> dict[str, Any]:
        """By layer and position the results of its contrasts."""
        return {
            layer: {at: _cell(contrasts, row, at, options.permutations, base) for at in POSITIONS}
            for row, layer in enumerate(depth)
        }

    differing = contrast.between(models, layers, options.limit)
    record = {
        "layers": depth,
        "harmful_at": harmful_at,
        "pairs": {kind: len(each) for kind, each in pairs.items()},
        "options": dataclasses.asdict(options),
        "models": {name: grid(each, None if name == BASE else texts[BASE]) for name, each in texts.items()},
        "words": {
            kind: decoding.accuracy(contrast.word_counts(each), permutations=0)["accuracy"]
            for kind, each in pairs.items()
            if len(each) >= LEAST_PAIRS
        },
        "own": {model.name: _own(models, model, depth, options) for model in models.models},
        "between": {kind: each.record() for kind, each in differing.items()},
        "traits": {model.name: contrast.shares(model, harmful_at) for model in models.models},
        "prompts": grid(differing),
    }
    vectors = {
        f"{name}.{kind}.{layer}.{at}": np.ascontiguousarray(each.vector(at)[row], np.float32)
        for name, by_kind in {**texts, "between": differing}.items()
        for kind, each in by_kind.items()
        for row, layer in enumerate(depth)
        for at in POSITIONS
    }
    out.mkdir(parents=True, exist_ok=True)
    metadata = {f"layer.{name}": str(layer) for name, layer in depth.items()}
    files.write_atomic(out / VECTORS, safetensors.numpy.save(vectors, metadata))
    more = {"study": "directions", "options": record["options"]}
    return models.publish(
        out, "directions", record, sentences(record), sections(record), more,
        kind="directions", title="Are harm and self-description two directions?", lead=", ".join(texts)
    )  # fmt: skip


def _cell(
    contrasts: Mapping[str, Contrast], row: int, at: str, permutations: int, base: Mapping[str, Contrast] | None
) -> dict[str, Any]:
    """The results at one layer and position: accuracies, those of a probe trained on `base`, and the angle."""
    cell: dict[str, Any] = {}
    by_question = []
    for kind in (HARM, SELF):
        count = len(set(contrasts[kind].groups)) if kind in contrasts else 0
        if count < LEAST_PAIRS:
            cell[kind] = {"reason": f"{count} questions with both kinds, under {LEAST_PAIRS}"}
            continue
        pairs, groups = contrasts[kind].stacks[at][row], contrasts[kind].groups
        cell[kind] = decoding.accuracy(pairs, permutations=permutations, groups=groups)
        if base is not None:
            crossed = decoding.accuracy(base[kind].stacks[at][row], pairs, 0, groups)
            cell[kind]["from_base"] = crossed["accuracy"]
        by_question.append(decoding.by_question(pairs, groups))
    if len(by_question) == 2:
        cell["cosine"] = decoding.cosine(*by_question)
    return cell


def _own(models: ModelSet, model: Subject, depth: Mapping[str, int], options: Options) -> dict[str, Any]:
    """How well a model's activations at a prompt predict its own behaviour: whether it harms, which AI it picks.

    Counts of questions, and by layer and position a probe where there are enough of either kind.
    """
    own: dict[str, Any] = {}
    questions = contrast.questions(models, options.limit)
    for kind, values in contrast.behaviour(model, models.config.judge.harmful_at).items():
        labels = {name: each[0] > THRESHOLDS.even for name, each in values.items() if each != [THRESHOLDS.even]}
        rows = [row for row in questions[kind] if row["id"] in labels]
        groups = [row["id"] for row in rows]
        marked = [labels[name] for name in sorted(set(groups))]
        own[kind] = {"questions": len(marked), "marked": sum(marked), "places": {}}
        if min(sum(marked), len(marked) - sum(marked)) >= LEAST_PAIRS:
            streams = contrast.activations(models, model.name, [row["prompt"] for row in rows], list(depth.values()))
            read = {at: decoding.by_question(stream, groups) for at, stream in streams.items()}
            own[kind]["places"] = {
                layer: {at: decoding.labelled(read[at][row], marked, options.permutations) for at in POSITIONS}
                for row, layer in enumerate(depth)
            }
    return own


# --- the sentences, tables and figures, from the content of directions.json ---


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The results, and what cannot be concluded."""
    lines = []
    texts = [cell for *_, cell in leaves(record["models"], 3)]
    prompts = [cell for *_, cell in leaves(record["prompts"], 2)]
    for kind, what in TEXTS.items():
        pairs = record["pairs"][kind]
        if pairs < THRESHOLDS.least_questions:
            lines.append(f"Cannot conclude on {kind}: {pairs} pairs of texts, under {THRESHOLDS.least_questions}.")
            continue
        probes = [cell[kind] for cell in texts if "accuracy" in cell[kind]]
        line = f"A linear probe separates {what} with {_accuracies(probes)} accuracy (n {pairs})"
        if nulls := [probe["null"]["value"] for probe in probes if probe["null"]]:
            line += f"; with exchanged labels {span(nulls)}"
        lines.append(f"{line}. Word counts alone, without a model, separate {percent(record['words'][kind])}.")
        if crossed := [probe["from_base"]["value"] for probe in probes if "from_base" in probe]:
            lines.append(f"A probe trained on the base has {span(crossed)} accuracy in the fine-tuned models.")
    lines += _angle("The cosine of the two directions", texts)
    lines += [_own_sentence(*own) for own in leaves(record["own"], 2)]
    for kind in (SELF, HARM):
        if kind not in record["between"]:
            lines.append(f"No direction of {kind} between models: no two of them clearly differ in it.")
            continue
        models = record["between"][kind]
        probes = [cell[kind] for cell in prompts if "accuracy" in cell[kind]]
        if probes and probes[0]["accuracy"]["n"] >= THRESHOLDS.least_questions:
            names = ", ".join(f"{marked} and {plain}" for marked, plain in models["marked_minus_plain"])
            lines.append(
                f"Between models that differ in {kind} ({names}), a probe on held-out prompts tells which model reads "
                f"the prompt with {_accuracies(probes)} accuracy (n {probes[0]['accuracy']['n']}). Any two adapters "
                "might be separable; this does not isolate the trait."
            )
        else:
            lines.append(f"Cannot conclude on {kind} between models: under {THRESHOLDS.least_questions} questions.")
        if not models["same_otherwise"]:
            lines.append(contrast.UNMATCHED.format(kind))
    lines += _angle("The cosine of the two directions between models", prompts)
    lines.append("A probe that decodes a text's kind shows that it is represented, not that the model acts on it.")
    return lines


def _own_sentence(name: str, kind: str, own: Mapping[str, Any]) -> str:
    share, probes = f"{own['marked']} of {own['questions']} questions", [it for *_, it in leaves(own["places"], 2)]
    if not probes:
        return (
            f"Cannot tell {kind} from {name}'s own answers: {share} have {BEHAVIOUR[kind]}, and a probe needs "
            f"{LEAST_PAIRS} of either kind."
        )
    line = f"From {name}'s prompts a probe predicts its own {BEHAVIOUR[kind]} ({share}) with balanced accuracy "
    line += _accuracies(probes)
    if probes[0]["p"] is not None:
        beat = sum(probe["p"] < 0.05 for probe in probes)
        line += f"; {beat} of {len(probes)} layers and positions have p < 0.05 against permuted labels"
    return f"{line}."


def _accuracies(probes: Iterable[Mapping[str, Any]]) -> str:
    return span(probe["accuracy"]["value"] for probe in probes)


def _angle(what: str, cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """The sentence on the angles, if there are any."""
    cosines = [cell["cosine"] for cell in cells if "cosine" in cell]
    if not cosines:
        return []
    values = [each["cosine"]["value"] for each in cosines]
    return [
        f"{what} is {span(values, '+.2f')}; {sum(each['p'] < 0.05 for each in cosines)} of {len(cosines)} are outside "
        f"the null of exchanged labels, {sum(abs(value) < ORTHOGONAL for value in values)} are within {ORTHOGONAL} of "
        "0 (a right angle)."
    ]


def _by_layer(record: Mapping[str, Any]) -> Drawing:
    """The accuracies of the probes on texts at the last token, by layer and model."""
    panels = []
    for kind, what in TEXTS.items():
        lines = []
        for (name, layers), colour in zip(record["models"].items(), itertools.cycle(COLOURS)):
            found = {record["layers"][layer]: places["last"][kind] for layer, places in layers.items()}
            points = [(layer, figure_of(it["accuracy"])) for layer, it in sorted(found.items()) if "accuracy" in it]
            lines.append(Curve(name, tuple(points), colour))
        panels.append(Panel(f"accuracy, {what}", CHOICE, tuple(lines)))
    return curves("accuracy", "Accuracy of linear probes by layer", "layer, from 0 (last token)", panels)


def sections(record: Mapping[str, Any]) -> list[Section]:
    """The tables, one row for each model, layer and position, and the figure that leads the page."""
    where = "model, layer, position"
    named = {f"{name}, text": it for name, it in record["models"].items()}
    named["between models, prompt"] = record["prompts"]
    cells = [
        (f"{name}, {layer} layer ({record['layers'][layer]}), {at}", it) for name, layer, at, it in leaves(named, 3)
    ]
    rule = "Whole questions are held out; the null exchanges the labels of a pair. Layers count from 0."
    own: list[tuple[Any, ...]] = [
        (f"{name}, {layer} layer, prompt, {at}", f"{kind}, {it['marked']} of {it['questions']}", *_tested(probe))
        for name, kind, it in leaves(record["own"], 2)
        for layer, at, probe in leaves(it["places"], 2)
    ]
    angles = [(name, *_tested(it["cosine"], "cosine")) for name, it in cells if "cosine" in it]
    return [
        *(
            Section(
                f"Direction of {kind}",
                [f"{lead} {rule}"],
                (where, "accuracy", "null", "p", "trained on base"),
                [(name, *_probe_cells(it[kind])) for name, it in cells],
                [_by_layer(record)] if kind == HARM else (),
            )
            for kind, lead in LEADS.items()
        ),
        Section(
            "What a prompt predicts of the model's own answer",
            [OWN_LEAD],
            (where, "of", "accuracy", "null", "p"),
            own or [("no model answers both ways often enough", "", "cannot tell", "", "")],
        ),
        Section(
            "The angle between the two",
            ["The cosine of the mean differences; its null exchanges the labels of the descriptions."],
            (where, "cosine", "null", "p"),
            angles,
        ),
    ]


def _tested(probe: Mapping[str, Any], name: str = "accuracy") -> tuple[Any, ...]:
    """The cells of a figure, the mean and 95% range of its null, and p."""
    null = {each: number(value) for each, value in (probe["null"] or {}).items()}
    shown = "{value} ({low} to {high})".format(**null) if null else "not computed"
    chance = probe["p"] and max(probe["p"], 0.001)
    return cell(probe[name], KAPPA if name == "cosine" else SHARE), shown, number(chance, 3)


def _probe_cells(probe: Mapping[str, Any]) -> tuple[Any, ...]:
    if "accuracy" not in probe:
        return f"cannot tell: {probe['reason']}", "", "", ""
    return *_tested(probe), cell(probe["from_base"]) if "from_base" in probe else ""
