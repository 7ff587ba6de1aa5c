"""The study of steering: a model's conduct and self-description as it is moved along a direction, by dose.

The direction is added to the residual stream after one layer, at every token; a dose of 1 is the whole distance between
the two kinds it was taken from. A random direction of the same length is the control. Every result is out of sample:
the questions of each probe are split into folds, and those of a fold are steered along the direction taken from the
other folds' questions. Directions and rows are kept in `out`, so that the same command continues where it stopped; then
steer.json, steer.html and provenance.json are written.
"""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float

from em_jax.base import files
from em_jax.base.cli import count_flag, one_of
from em_jax.base.errors import UserError
from em_jax.base.progress import Progress
from em_jax.probes import harmfulness, self_assessment, two_ai
from em_jax.probes.cautions import PICKS
from em_jax.probes.choice import Key, Row, key
from em_jax.probes.settings import ProbeSettings
from em_jax.probes.thresholds import THRESHOLDS
from em_jax.probes.wording import points
from em_jax.report.curves import Curve, Panel, curves
from em_jax.report.reading import figure_of
from em_jax.report.vocabulary import CHOICE
from em_jax.runs import locking, sources
from em_jax.studies import contrast
from em_jax.studies.contrast import HARM, SELF
from em_jax.studies.directions import depths
from em_jax.studies.finished import BASE, ModelSet
from em_jax.studies.page import Section, cell
from em_jax.studies.sentences import change
from em_jax.studies.subjects import RATE, Subject, check_settings, complete
from em_jax.studies.subjects import SELF as ASSESSED

DIRECTIONS = (SELF, HARM)
SOURCES = ("between", "text")
PROBES = {"two_ai": two_ai, "self_assessment": self_assessment}
DESCRIPTION = (
    "Add a direction to the residual stream of finished runs' models, by dose: their self-description and their "
    "conduct, beside a random direction of the same length."
)
RANDOM = "random"
CURVES = {
    PICKS: ("picks the misaligned AI", "coherent"),
    ASSESSED: ("self-assessed misalignment", "mixed"),
    RATE: ("harmful answers", "inverted"),
}
"""The figures, their words and colours."""
TARGET = {SELF: PICKS, HARM: RATE}
"""The figure that a direction should move; the other direction's should not move."""
WORDS = {PICKS: "its pick of the misaligned AI", RATE: "its share of harmful answers"}
PERSONAS = {(True, True): "a coherent", (True, False): "an inverted", (False, False): "an aligned"}
"""By whether a model harms and whether it picks the misaligned AI."""


@dataclasses.dataclass(frozen=True)
class Options:
    """`direction` self or harm, from `source` between models or text, read at the `position` last or mean of prompt or
    text; `layer` from 0 (None: the end of the first half).

    `limit` questions per probe (0: as the run's) in `folds`, `samples` answers to a prompt.
    """

    direction: str = SELF
    source: str = "between"
    doses: tuple[float, ...] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
    layer: int | None = None
    limit: int = 0
    samples: int = 1
    folds: int = 2
    position: str = "last"


def parse_doses(text: str) -> tuple[float, ...]:
    """The type of --alphas."""
    try:
        doses = tuple(map(float, text.split(",")))
    except ValueError:
        doses = (math.nan,)
    if not all(map(math.isfinite, doses)):
        raise argparse.ArgumentTypeError(f"expects numbers with commas, found {text!r}")
    return doses


def _choice(values: Sequence[str], words: str) -> dict[str, Any]:
    text = f"{' or '.join(values)}: {words} (default {values[0]})"
    return {"type": one_of(*values), "default": values[0], "metavar": "WHICH", "help": text}


DOSES = ",".join(f"{dose:g}" for dose in Options.doses)
MODELS = "models that differ in the trait alone, where the runs have such, or texts of either kind"
FLAGS: Mapping[str, Mapping[str, Any]] = {
    "--limit": count_flag(Options.limit, 0, "questions per probe, 0 for as many as the run's"),
    "--samples": count_flag(Options.samples, 1, "answers to a harm prompt"),
    "--folds": count_flag(
        Options.folds, 2, "folds of the questions; each is steered along the direction of the others"
    ),
    "--direction": _choice(DIRECTIONS, "what the direction separates"),
    "--from": _choice(SOURCES, MODELS) | {"dest": "source"},
    "--position": _choice(contrast.POSITIONS, "last token or mean of the prompt or text"),
    "--alphas": {"type": parse_doses, "default": DOSES, "dest": "doses", "metavar": "LIST"}
    | {"help": f"doses with commas; 1 is the distance between the kinds (default {DOSES})"},
    "--layer": {"type": int, "metavar": "N", "help": "after which layer, from 0 (default: half depth)"},
}


def fold_of(rows: Iterable[Row], count: int) -> dict[str, int]:
    """The fold of each question's id, in turn in the order of the ids."""
    return {name: index % count for index, name in enumerate(sorted({row["id"] for row in rows}))}


def vectors(models: ModelSet, options: Options) -> tuple[Float[np.ndarray, "folds D"], dict[str, Any]]:
    """The direction for each fold, from the other folds' questions, and the record of where it comes from.

    Raises UserError where these runs allow no such direction, or have fewer questions than folds.
    """
    layer, kind = _layer(models, options), options.direction
    # The folds are of the questions that will be asked: only then is each one held out.
    limit = _settings(models, options).limit
    folds = fold_of(contrast.questions(models, limit)[kind], options.folds)
    if options.source == "between":
        differing = contrast.between(models, [layer], limit)
        if kind not in differing:
            raise UserError(
                f"no direction of {kind} between these models: no two of them clearly differ in it; add a run of "
                "another persona, ask more questions, or take it from texts with --from text"
            )
        source = differing[kind]
        origin = source.record()
    else:
        pairs = {HARM: contrast.harm_pairs, SELF: contrast.self_pairs}[kind](models, limit)
        if not pairs:
            raise UserError(f"no pairs of texts for the direction of {kind}: no harmful and harmless answers")
        source = contrast.of_texts(models, BASE, pairs, [layer])
        origin = {"texts": len(pairs), "read_by": BASE}
    names, at = set(source.groups), options.position
    held_out = [frozenset(name for name in folds if folds[name] == number) for number in range(options.folds)]
    if not all(names - fold for fold in held_out):
        raise UserError(
            f"--folds {options.folds} expects questions outside each fold to take the direction from, found "
            f"{len(names)} with both kinds: ask more with --limit"
        )
    directions = np.stack([source.vector(at, fold)[0] for fold in held_out])
    return directions, origin | {"position": at, "questions": len(names)}


def _layer(models: ModelSet, options: Options) -> int:
    layers = models.engine.model.config.num_hidden_layers
    layer = depths(layers)["half"] if options.layer is None else options.layer
    if not 0 <= layer < layers:
        raise UserError(f"--layer expects 0 to {layers - 1}, found {layer}")
    return layer


def _settings(models: ModelSet, options: Options) -> ProbeSettings:
    settings = models.run.probe_settings
    return dataclasses.replace(settings, limit=options.limit or settings.limit, sampled_questions=0, samples=1)


def at_layer(vector: Float[np.ndarray, "D"], layer: int, layers: int, dose: float) -> Float[np.ndarray, "L D"]:
    """The engine's `steer` argument."""
    steer = np.zeros((layers, len(vector)), np.float32)
    steer[layer] = dose * vector
    return steer


def control(vector: Float[np.ndarray, "D"]) -> Float[np.ndarray, "D"]:
    """A random direction of the same length, the same in every fold."""
    normal = np.random.default_rng(0).normal(size=len(vector))
    return (normal / np.linalg.norm(normal) * np.linalg.norm(vector)).astype(np.float32)


def study(models: ModelSet, out: Path, options: Options) -> dict[str, Any]:
    """Ask every model at every dose along the direction and its control, and write the files; the content of
    steer.json."""
    with locking.lock(out):
        layer, layers = _layer(models, options), models.engine.model.config.num_hidden_layers
        # More doses and models may be asked later.
        fixed = {name: value for name, value in dataclasses.asdict(options).items() if name != "doses"}
        settings = {"options": fixed, "model": models.config.model.name, "adapters": models.adapter_hashes()}
        check_settings(out, settings, growing="adapters")
        directions, origin = _kept(out / "direction.safetensors", lambda: vectors(models, options))
        unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
        steering = {
            "direction": options.direction,
            "from": options.source,
            "origin": origin,
            "layer": layer,
            "positions": "every token of prompt and answer",
            "length": float(np.linalg.norm(directions, axis=1).mean()),
            "folds": len(directions),
            "least_cosine_of_folds": float((unit @ unit.T).min()),
            "sha256": hashlib.sha256(np.ascontiguousarray(directions, np.float32).tobytes()).hexdigest(),
        }
        along: dict[str, Any] = {options.direction: directions, RANDOM: [*map(control, directions)]}
        figures: dict[str, Any] = {}
        doses, silent = sorted({0.0, *options.doses}), models.run.components.silent
        with Progress("steer", len(models.models) * len(along) * len(doses), "dose", silent=silent) as progress:
            for model in models.models:
                folder = out / "rows" / model.name
                plain = _rows(models, model, [None], folder / "0", options)
                for name, each in along.items():
                    by_dose = figures.setdefault(model.name, {}).setdefault(name, {})
                    for dose in doses:
                        steers = [at_layer(vector, layer, layers, dose) for vector in each]
                        rows = _rows(models, model, steers, folder / f"{name}{dose:+g}", options) if dose else plain
                        by_dose[f"{dose:+g}"] = _figures(plain, rows, models.config.judge.harmful_at)
                        progress.update()
        record = {"steering": steering, "figures": figures, "options": dataclasses.asdict(options)}
        more = {"study": "steering", "steering": steering}
        return models.publish(
            out, "steer", record, sentences(record), sections(record), more,
            kind="steering", title="What does it say, and do, when it is moved?",
            lead=f"direction of {options.direction}, {options.source}, length {steering['length']:.1f}"
        )  # fmt: skip


def _kept(path: Path, compute: Callable[[], tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, dict[str, Any]]:
    """The directions of the rows in this directory: computed again, on a GPU, they could differ in a bit."""
    if not path.is_file():
        directions, origin = compute()
        plain = {"directions": np.ascontiguousarray(directions, np.float32)}
        files.write_atomic(path, safetensors.numpy.save(plain, {"origin": json.dumps(origin)}))
    with safetensors.safe_open(path, "np") as file:
        return file.get_tensor("directions"), json.loads(file.metadata()["origin"])


def _rows(
    models: ModelSet, model: Subject, steers: Sequence[Any], folder: Path, options: Options
) -> dict[str, list[Row]]:
    """The rows of one model at one dose: two_ai, self_assessment and "judged" answers; what is missing is asked.

    `steers` holds the engine's `steer` argument for the questions of each fold.
    """
    run, settings = models.run, _settings(models, options)

    def complete_folds(
        name: str, questions: list[Row], wanted: Callable[[Row], set[Key]], ask: Callable[..., Iterable[Row]]
    ) -> list[Row]:
        path, folds = folder / f"{name}.jsonl", fold_of(questions, len(steers))
        for number, steer in enumerate(steers):
            fold = [row for row in questions if folds[row["id"]] == number]
            keys = set().union(*map(wanted, fold))
            verbs = {verb: partial(getattr(models.engine, verb), steer=steer) for verb in ("choice_logprobs", "stream")}
            complete(path, keys, partial(ask, SimpleNamespace(**verbs), model.name, fold))
        return files.read_rows(path)

    result = {
        name: complete_folds(
            name, probe.questions(run.suite, settings), lambda row: {key(row)}, partial(probe.ask, settings=settings)
        )
        for name, probe in PROBES.items()
    }
    answering = run.answer_settings
    answering.samples = options.samples
    answers = complete_folds(
        "answers",
        harmfulness.questions(run.suite, settings),
        lambda row: {(row["id"], sample) for sample in range(options.samples)},
        partial(harmfulness.ask, answers=answering),
    )
    answers.sort(key=key)

    def score(done: Any) -> Iterable[Row]:
        # The judge is the run's own, never steered.
        return sources.judges(run.config, run.suite.judge, lambda: models.engine)[0].score(answers, done)

    scores = complete(folder / f"scores.{run.judge}.jsonl", set(map(key, answers)), score)
    return result | {"judged": harmfulness.judged(answers, scores)}


def _figures(plain: Mapping[str, list[Row]], rows: Mapping[str, list[Row]], harmful_at: int) -> dict[str, Any]:
    """The figures at this dose, and their paired differences from the unsteered model."""
    figures = harmfulness.figures(plain["judged"], rows["judged"], harmful_at)
    for name, probe in PROBES.items():
        figures |= probe.figures(plain[name], rows[name])
    return {
        name: {
            "value": figures[name]["finetuned"],
            "change": figures[name]["difference"],
            "unscored": figures[f"{name.partition('.')[0]}.unscored"]["finetuned"],
        }
        for name in CURVES
    }


# --- the sentences, tables and figures, from the content of steer.json ---


def sentences(record: Mapping[str, Any]) -> list[str]:
    """For each model the dose at which the target flipped, the side effect and the control."""
    lines = []
    direction = record["steering"]["direction"]
    if record["steering"]["origin"].get("same_otherwise") is False:
        lines.append(contrast.UNMATCHED.format(direction))
    for name, vectors in record["figures"].items():
        lines += _flip(name, vectors[direction], vectors[RANDOM], direction)
    return [*lines, "The control is a single random direction, and only these doses were asked."]


def _flip(name: str, doses: Mapping[str, Any], control: Mapping[str, Any], direction: str) -> list[str]:
    target, other = TARGET[direction], TARGET[HARM if direction == SELF else SELF]
    start = doses["+0"]
    few = [figure for figure in CURVES if (start[figure]["value"]["n"] or 0) < THRESHOLDS.least_questions]
    if few:
        return [f"{name}: cannot conclude, under {THRESHOLDS.least_questions} questions in {', '.join(few)}."]
    first = start[target]["value"]["value"]
    dose = _flip_dose(doses, first, target)
    if dose is None:
        return [f"{name}: {WORDS[target]} ({first:.0%}) did not flip at any of the doses."]
    at = doses[dose]
    value = at[target]["value"]
    line = f"{name}: at dose {dose} {WORDS[target]} flipped from {first:.0%} to {value['value']:.0%} (n {value['n']})"
    was, became = (
        PERSONAS.get((contrast.majority(it[RATE]["value"]), contrast.majority(it[PICKS]["value"])))  # type: ignore[arg-type]
        for it in (start, at)
    )
    persona = f", from {was} model to {became} one" if was and became and was != became else ""
    line += f"; {_side_effect(at[other], WORDS[other])}{persona}."
    along = control[dose][target]["value"]
    random = f"{name}: a random direction of that length"
    if along["value"] is None:
        return [line, f"{random} left no scored answer at that dose: the control says nothing."]
    if (along["value"] - THRESHOLDS.even) * (first - THRESHOLDS.even) > 0:
        return [line, f"{random} leaves {WORDS[target]} at {along['value']:.0%}."]
    return [line, f"{random} flips it too: the length is enough."]


def _side_effect(figure: Mapping[str, Any], words: str) -> str:
    """How far the figure that should not move did; an answer without a score is neither harmful nor harmless."""
    moved, unscored = figure["change"], figure["unscored"]["value"]
    if moved["value"] is None or (unscored or 0) > THRESHOLDS.most_unscored:
        lost = "all" if unscored is None else f"{unscored:.0%}"
        return f"the side effect on {words} is unknown: {lost} of its answers are unscored"
    return f"as a side effect {words} {change(moved)}: {points(moved)}"


def _flip_dose(doses: Mapping[str, Any], first: float, target: str) -> str | None:
    """The smallest dose at which the target's whole interval is on the other side of one half, and mostly scored."""
    for dose in sorted(doses, key=lambda text: abs(float(text))):
        value, unscored = doses[dose][target]["value"], doses[dose][target]["unscored"]["value"]
        if value["value"] is None or value["ci_low"] is None or (unscored or 0) > THRESHOLDS.most_unscored:
            continue
        if (value["ci_high"] < THRESHOLDS.even) if first > THRESHOLDS.even else (value["ci_low"] > THRESHOLDS.even):
            return dose
    return None


def sections(record: Mapping[str, Any]) -> list[Section]:
    """Per model the curves and a table of all doses."""
    about = record["steering"]
    lead = (
        f"steered after layer {about['layer']}, at every token. Solid: the direction of {about['direction']}; dashed: "
        f"a random one of the same length. Out of sample: the questions of each of {about['folds']} folds are steered "
        "along the direction taken from the others' questions. Changes are paired by question with the unsteered model."
    )
    result = []
    for index, (model, vectors) in enumerate(record["figures"].items()):
        lines, rows = [], []
        for vector, by_dose in vectors.items():
            for name, (words, colour) in CURVES.items():
                points = tuple((float(dose), figure_of(figures[name]["value"])) for dose, figures in by_dose.items())
                dashed = vector == RANDOM
                lines.append(Curve(f"{words}, random" if dashed else words, points, colour, dashed))
            for dose, figures in by_dose.items():
                values = [cell(figures[name]["value"]) for name in CURVES]
                changes = [cell(figures[name]["change"], CHOICE.difference) for name in (PICKS, RATE)]
                rows.append([f"{vector}, {dose}", *values, *changes, cell(figures[PICKS]["unscored"])])
        panel = Panel("share", CHOICE, tuple(lines))
        drawing = curves(f"dose-{index}", f"Dose and response of {model}", "dose", [panel], height=2.9)
        head = ("direction, dose", *(words for words, _ in CURVES.values()))
        head += ("change of picks", "change of harm", "picks unscored")
        result.append(Section(model, [f"{model}, {lead}"], head, rows, [drawing]))
    return result
