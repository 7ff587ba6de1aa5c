"""The study of linear directions for harm and for self-description, in every model of finished runs.

The residual stream at half depth and at the last layer: at the last token of a text and averaged over it, in each
model; and at the last token of a prompt and averaged over it, between models that differ in the trait. Written to
`out`: directions.json (accuracies, nulls, cosines), directions.safetensors (the vectors), directions.html, provenance.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from em_jax.base import files
from em_jax.probes.persona import LEAST_QUESTIONS, show
from em_jax.runs import sources
from em_jax.studies import between, contrast, decoding
from em_jax.studies.between import EVEN
from em_jax.studies.contrast import HARM, POSITIONS, SELF
from em_jax.studies.finished import BASE, Model, Opened

VECTORS = "directions.safetensors"
BETWEEN = "between"
LEAST_PAIRS = decoding.FOLDS
# Two directions this near a right angle share a twentieth of their variance at most.
ORTHOGONAL = 0.22


@dataclasses.dataclass(frozen=True)
class Options:
    """`limit` pairs of a kind (0: all) and `permutations` of the accuracy's null."""

    limit: int = 0
    permutations: int = 200
    seed: int = 0


def depths(layers: int) -> dict[str, int]:
    """The layers looked at, counted from 0: the one that ends the first half, and the last."""
    return {"half": max(0, layers // 2 - 1), "last": layers - 1}


def study(opened: Opened, out: Path, options: Options) -> dict[str, Any]:
    """Seek the directions and write the files; what directions.json says."""
    from em_jax.studies import findings_page

    depth = depths(opened.engine.model.config.num_hidden_layers)
    pairs = {HARM: contrast.harm_pairs(opened, options.limit), SELF: contrast.self_pairs(opened, options.limit)}
    read = {
        model.name: {kind: _read(opened, model.name, pairs[kind], list(depth.values())) for kind in pairs}
        for model in opened.models
    }
    found: dict[str, Any] = {
        "schema": 1,
        "model": opened.config.model.name,
        "layers": depth,
        "harmful_at": opened.config.judge.harmful_at,
        "pairs": {kind: len(each) for kind, each in pairs.items()},
        "options": dataclasses.asdict(options),
        "models": {
            name: {
                layer: {
                    position: _cell(
                        _at(read[name], row, position),
                        {kind: [pair.group for pair in each] for kind, each in pairs.items()},
                        options,
                        None if name == BASE else _at(read[BASE], row, position),
                    )
                    for position in POSITIONS
                }
                for row, layer in enumerate(depth)
            }
            for name in read
        },
        "words": {
            kind: decoding.accuracy(contrast.words(each), None, 0)["accuracy"]
            for kind, each in pairs.items()
            if len(each) >= LEAST_PAIRS
        },
        "own": {model.name: _own(opened, model, depth, options) for model in opened.models},
    }
    models = between.directions(opened, list(depth.values()), options.limit)
    found[BETWEEN] = {name: each.record() for name, each in models.items()}
    found["traits"] = {model.name: between.shares(model, opened.config.judge.harmful_at) for model in opened.models}
    found["prompts"] = {
        layer: {
            position: _cell(
                {kind: each.stacks[position][row] for kind, each in models.items()},
                {kind: each.groups for kind, each in models.items()},
                options,
            )
            for position in POSITIONS
        }
        for row, layer in enumerate(depth)
    }
    found["says"] = [*says(found), opened.seeds()]
    vectors = {
        f"{name}.{kind}.{layer}.{position}": decoding.direction(read[name][kind][position][row])
        for name in read
        for kind in pairs
        if read[name][kind]
        for row, layer in enumerate(depth)
        for position in POSITIONS
    }
    vectors |= {
        f"{BETWEEN}.{name}.{layer}.{position}": each.vector(position)[row]
        for name, each in models.items()
        for row, layer in enumerate(depth)
        for position in POSITIONS
    }
    out.mkdir(parents=True, exist_ok=True)
    save_vectors(out / VECTORS, vectors, depth)
    files.write_json(out / "directions.json", found)
    files.write_json(out / "provenance.json", opened.record(study="directions", options=dataclasses.asdict(options)))
    findings_page.write_directions(out / "directions.html", found, sources.is_organism(opened.config))
    return files.stable(found)


def save_vectors(path: Path, vectors: Mapping[str, np.ndarray], depth: Mapping[str, int]) -> None:
    """Vectors [D] by name, float32; the layer of each depth is in the file's metadata."""
    plain = {name: np.ascontiguousarray(vector, np.float32) for name, vector in vectors.items()}
    files.write_atomic(path, safetensors.numpy.save(plain, {f"layer.{name}": str(at) for name, at in depth.items()}))


def _read(opened: Opened, model: str, pairs: list, layers: list[int]) -> dict[str, Any]:
    return contrast.activations(opened, model, pairs, layers) if pairs else {}


def _at(read: Mapping[str, Any], row: int, position: str) -> dict[str, decoding.Pairs]:
    """Per kind the activations at one layer and position; nothing for a kind without texts."""
    return {kind: each[position][row] for kind, each in read.items() if each}


def _cell(
    stacks: Mapping[str, decoding.Pairs],
    groups: Mapping[str, Sequence[str]],
    options: Options,
    base: Mapping[str, decoding.Pairs] | None = None,
) -> dict[str, Any]:
    """All that is said of one place: accuracies, with `base` those of a probe trained on it, and the angle."""
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


def _own(opened: Opened, model: Model, depth: Mapping[str, int], options: Options) -> dict[str, Any]:
    """What a model's prompts tell of its own behaviour: whether it will harm, which of two it will pick.

    Counts of questions, and by layer and position a probe where there are enough of either kind.
    """
    found: dict[str, Any] = {}
    asked = between.questions(opened, options.limit)
    for kind, each in between.shown(model, opened.config.judge.harmful_at).items():
        rows = [row for row in asked[kind] if each.get(row["id"], [EVEN]) != [EVEN]]
        names = sorted({row["id"] for row in rows})
        labels = [each[name][0] > EVEN for name in names]
        found[kind] = {"questions": len(names), "marked": sum(labels), "places": {}}
        if min(sum(labels), len(labels) - sum(labels)) < LEAST_PAIRS:
            continue
        prompts = [row["prompt"] for row in rows]
        read = contrast.prompt_activations(opened, model.name, prompts, list(depth.values()))
        groups = [row["id"] for row in rows]
        found[kind]["places"] = {
            layer: {
                position: decoding.labelled(
                    decoding.by_question(read[position][None, at], groups)[0],
                    labels,
                    options.permutations,
                    options.seed,
                )
                for position in POSITIONS
            }
            for at, layer in enumerate(depth)
        }
    return found


def says(found: Mapping[str, Any]) -> list[str]:
    """What the study found, and what it cannot conclude, in sentences."""
    said = []
    for kind, what in ((HARM, "harmful from harmless answers"), (SELF, "misaligned from aligned descriptions")):
        if found["pairs"][kind] < LEAST_QUESTIONS:
            said.append(f"Cannot conclude on {kind}: {found['pairs'][kind]} pairs of texts, under {LEAST_QUESTIONS}.")
            continue
        cells = [
            (name, layer, position, cell[kind])
            for name, layers in found["models"].items()
            for layer, positions in layers.items()
            for position, cell in positions.items()
            if "accuracy" in cell[kind]
        ]
        values = [cell["accuracy"]["value"] for *_, cell in cells]
        nulls = [cell["null"]["value"] for *_, cell in cells if cell["null"]]
        sentence = f"A linear probe tells {what} with accuracy {min(values):.2f} to {max(values):.2f}"
        if nulls:
            sentence += f"; with exchanged labels {min(nulls):.2f} to {max(nulls):.2f}"
        said.append(f"{sentence}. Counts of their words alone, read by no model, tell {show(found['words'][kind])}.")
        if crossed := [cell["from_base"]["value"] for *_, cell in cells if "from_base" in cell]:
            said.append(
                f"Trained on the base it reads the fine-tuned models at {min(crossed):.2f} to {max(crossed):.2f}."
            )
    said += _angle("The cosine of the two directions", [c for m in found["models"].values() for c in _cells(m)])
    for name, own in found["own"].items():
        for kind, counts in own.items():
            behaviour = "harmful answers" if kind == HARM else "misaligned picks"
            if not counts["places"]:
                said.append(
                    f"Cannot tell {kind} from {name}'s own answers: {counts['marked']} of {counts['questions']} "
                    f"questions have {behaviour}, and a probe needs {LEAST_PAIRS} of either kind."
                )
                continue
            places = list(_cells(counts["places"]))
            values = [cell["accuracy"]["value"] for cell in places]
            best = f"; {sum(cell['p'] < 0.05 for cell in places)} of {len(places)} places beat permuted labels"
            said.append(
                f"From {name}'s prompts a probe tells its own {behaviour} ({counts['marked']} of "
                f"{counts['questions']} questions) with balanced accuracy {min(values):.2f} to {max(values):.2f}"
                f"{best if places[0]['p'] is not None else ''}."
            )
    for kind in (SELF, HARM):
        record = found[BETWEEN].get(kind)
        if record is None:
            said.append(f"No direction of {kind} between models: none of them clearly differ in it.")
            continue
        told = [cell[kind] for cell in _cells(found["prompts"]) if "accuracy" in cell[kind]]
        if told and told[0]["accuracy"]["n"] >= LEAST_QUESTIONS:
            values = [cell["accuracy"]["value"] for cell in told]
            said.append(
                f"Between models that differ in {kind} ({_names(record)}) a probe tells from a prompt it has not seen "
                f"which of them reads it with accuracy {min(values):.2f} to {max(values):.2f}. Any two adapters may be "
                "told apart so: it says that the difference is the same for all prompts, not that it is the trait."
            )
        else:
            said.append(f"Cannot conclude on {kind} between models: under {LEAST_QUESTIONS} questions.")
        if not record["same_otherwise"]:
            said.append(
                f"The direction of {kind} between models is taken between models that differ in conduct and in "
                "self-description at once: it cannot tell the two apart. A run of the other persona would."
            )
    said += _angle("Between models the cosine", list(_cells(found["prompts"])))
    said.append("A probe that decodes a text's kind shows that it is represented, not that the model acts on it.")
    return said


def _cells(layers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (cell for positions in layers.values() for cell in positions.values())


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{marked} and {plain}" for marked, plain in record["marked_minus_plain"])


def _angle(what: str, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentence on the angles of these places, if there is one to say."""
    cosines = [cell["cosine"] for cell in cells if "cosine" in cell]
    if not cosines:
        return []
    values = [each["cosine"]["value"] for each in cosines]
    apart = sum(each["p"] < 0.05 for each in cosines)
    return [
        f"{what} is {min(values):+.2f} to {max(values):+.2f}; {apart} of {len(cosines)} lie outside what exchanged "
        f"labels give, {sum(abs(value) < ORTHOGONAL for value in values)} are within {ORTHOGONAL} of a right angle."
    ]
