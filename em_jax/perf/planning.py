"""A plan: what the programs of a run need and take on a slice, and where they do not fit, a change that does."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from em_jax import config as settings
from em_jax.model.config import Qwen2Config
from em_jax.model.remat import KEPT
from em_jax.model.sharding import Sharding, check_mesh, make_mesh, mesh_text
from em_jax.perf import advice
from em_jax.perf.bench_workload import synthetic_steps
from em_jax.perf.chips import Chip
from em_jax.perf.compiling import Compiled, compile_program
from em_jax.perf.roofline import Times, decode_times, train_times
from em_jax.runs.programs import Program, Shapes
from em_jax.sample.engine import PASS_TOKENS, pass_rows
from em_jax.train.batches import GATHERED_PASS, Example, Shape, plan_microbatches

PROMPT = 128
"""Tokens of a prompt that is prefilled."""
PLANNED_STEPS = 64
MOST_TRIED = 5
"""Changes that are compiled where a plan does not fit."""

Compile = Callable[[Program], Compiled]
"""`compile_program`, or what stands in for it where there is no compiler."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is planned: a model and its settings on the devices of a slice.

    Answers have `capacity` for so many tokens, prompt included, and as many are sampled at once as the settings say;
    `examples` rows are trained on in a run, and `prompts` are answered by base and fine-tuned; a chip costs `price` an
    hour (None: not asked).
    """

    config: Qwen2Config
    settings: settings.Config
    chip: Chip
    devices: Sequence[Any]
    capacity: int
    examples: int
    prompts: int
    price: float | None = None

    @property
    def shapes(self) -> Shapes:
        """The shapes over the mesh of the settings; UsageError where the model does not divide over it."""
        sharding = Sharding(make_mesh(settings.parse_mesh(self.settings.mesh) or None, self.devices))
        check_mesh(dict(sharding.mesh.shape), self.config.dims)
        return Shapes(self.config, self.settings, sharding)

    @property
    def slots(self) -> int:
        """Answers under way at once, as the engine rounds them."""
        parts = self.shapes.sharding.batch_parts
        return -(-self.settings.answers.slots // parts) * parts

    def change(self, **values: Any) -> "Question":
        """With other settings, by name with "__" for the dot."""
        named = {name.replace("__", "."): value for name, value in values.items()}
        return dataclasses.replace(self, settings=settings.replace(self.settings, named))


class Found(NamedTuple):
    """What one kind of work needs (its programs, the largest first) and takes; `advice` names what fits instead."""

    programs: list[Compiled]
    fits: bool
    free: int
    figures: dict[str, float]
    advice: list[str]


def plan_training(question: Question, compile: Compile = compile_program) -> Found:
    """The training step at full rows, and at the lengths of real rows."""
    return _settled(question, training_programs, compile, _training_changes, training_figures)


def plan_sampling(question: Question, compile: Compile = compile_program) -> Found:
    """Prefill and decoding of all slots."""
    return _settled(question, sampling_programs, compile, _sampling_changes, sampling_figures)


def training_programs(question: Question) -> list[Program]:
    """The pass at full rows that all carry loss, and the update."""
    shapes = question.shapes
    length = question.settings.train.max_length
    return [shapes.train_pass(Shape(shapes.rows, length, length)), shapes.train_update()]


def sampling_programs(question: Question) -> list[Program]:
    """Prefill as the engine pads it on an accelerator, and a chunk of decoding."""
    shapes = question.shapes
    rows = pass_rows(PROMPT, PASS_TOKENS, shapes.sharding.batch_parts)
    return [
        shapes.decode(question.slots, question.capacity),
        shapes.prefill(rows, PROMPT, question.capacity, question.slots),
    ]


def training_figures(question: Question) -> dict[str, float]:
    """Reckoned times of a step, tokens per second of full and of real rows, and of a run its hours and cost."""
    shapes, train = question.shapes, question.settings.train
    passes = -(-train.batch_size // shapes.rows)
    full = train_times(shapes, Shape(shapes.rows, train.max_length, train.max_length), question.chip)
    tokens = train.batch_size * train.max_length
    figures = _figures(full, passes, tokens)
    steps = [
        [Example(example.ids[: train.max_length], example.mask[: train.max_length]) for example in step]
        for step in synthetic_steps(PLANNED_STEPS, question.config.vocab_size)
    ]
    examples = [example for step in steps for example in step]
    size = train.batch_size
    indices = [list(range(i, min(i + size, len(examples)))) for i in range(0, len(examples), size)]
    plan = plan_microbatches(
        examples, indices, rows_per_pass=train.rows_per_pass, divide_by=shapes.sharding.batch_parts,
        width=question.config.hidden_size, microbatch_overhead=GATHERED_PASS
    )  # fmt: skip
    times = {shape: train_times(shapes, shape, question.chip) for shape in plan.shapes}
    seconds = sum(times[shape].least for step in plan.steps for shape, _ in step)
    real = sum(len(example.ids) for example in examples)
    figures["real_rows_step_s"] = seconds / len(plan.steps)
    figures["real_rows_tokens_per_s"] = real / seconds
    figures["run_hours"] = seconds / len(examples) * question.examples * train.epochs / 3600
    return _priced(figures, question)


def sampling_figures(question: Question) -> dict[str, float]:
    """Reckoned times of a token in every slot, the tokens per second of all slots together, and of a run's answers.

    Those are taken to be as long as they may be; reading the questions of the other probes is not counted.
    """
    times = decode_times(question.shapes, question.slots, question.capacity, question.chip)
    figures, asked = _figures(times, 1, question.slots), question.settings.answers
    tokens = 2 * question.prompts * asked.samples * asked.max_new_tokens
    figures["run_hours"] = tokens / figures["tokens_per_s"] / 3600
    return _priced(figures, question)


def _figures(times: Times, passes: int, tokens: int) -> dict[str, float]:
    return {
        "flops": passes * times.flops,
        "matmuls_s": passes * times.matmuls,
        "memory_s": passes * times.memory,
        "collectives_s": passes * times.collectives,
        "step_s": passes * times.least,
        "step_s_without_overlap": passes * times.most,
        "tokens_per_s": tokens / (passes * times.least),
    }


def _priced(figures: dict[str, float], question: Question) -> dict[str, float]:
    if question.price is not None:
        figures["run_cost"] = figures["run_hours"] * len(question.devices) * question.price
    return figures


def _settled(
    question: Question,
    programs: Callable[[Question], list[Program]],
    compile: Compile,
    changes: Callable[[Question, int], Iterator[tuple[str, Question]]],
    figures: Callable[[Question], dict[str, float]],
) -> Found:
    """Compiles the programs, and where one is too big tries changes, the first that fits ends the search."""
    memory = question.chip.memory
    compiled = sorted(map(compile, programs(question)), key=lambda each: -each.bytes)
    free = memory - compiled[0].bytes
    said: list[str] = []
    if free < 0 or not all(each.whole for each in compiled):
        free = min(free, -1)
        for tried, (words, changed) in enumerate(changes(question, compiled[0].bytes)):
            again = max(map(compile, programs(changed)), key=lambda each: each.bytes)
            left = memory - again.bytes
            if again.whole and left >= 0:
                said.append(f"{words} fits: {left / 2**30:.2f} GiB free")
                break
            said.append(f"{words} does not fit either: {-left / 2**30:.2f} GiB too much")
            if tried == MOST_TRIED - 1:
                said.append("there is more to try, and a larger slice")
                break
        else:
            said.append("nothing else here fits: take a larger slice")
    return Found(compiled, free >= 0, free, figures(question), said)


def _training_changes(question: Question, needed: int) -> Iterator[tuple[str, Question]]:
    """More recomputation first, then fewer rows to a pass, an int8 base, more tensor parts."""
    prefix, policies = "", ("none", *KEPT)
    for policy in policies[policies.index(question.settings.train.remat) + 1 :]:
        question, prefix = question.change(train__remat=policy), f"train.remat={policy}"
        yield prefix, question
    if prefix:
        prefix += " with "
    shapes = question.shapes
    # Weights, and the adapter with its gradients (twice, while they are added up) and moments.
    state = 6 * sum(4 * leaf.size for leaf in jax.tree.leaves(shapes.adapter.factors))
    fixed = min(needed, shapes.base_bytes() + state)
    parts = shapes.sharding.batch_parts
    for rows in advice.rows_that_fit(shapes.rows, parts, needed, fixed, question.chip.memory):
        yield f"{prefix}train.rows_per_pass={rows}", question.change(train__rows_per_pass=rows)
    if parts < shapes.rows:
        question, prefix = question.change(train__rows_per_pass=parts), f"{prefix}train.rows_per_pass={parts} with "
    yield from _common_changes(question, prefix, parts)


def _sampling_changes(question: Question, needed: int) -> Iterator[tuple[str, Question]]:
    """Fewer answers at once, an int8 base, more tensor parts."""
    shapes = question.shapes
    parts = shapes.sharding.batch_parts
    fixed = min(needed, shapes.base_bytes())
    for slots in advice.rows_that_fit(question.slots, parts, needed, fixed, question.chip.memory):
        yield f"answers.slots={slots}", question.change(answers__slots=slots)
    yield from _common_changes(question, "", question.slots)


def _common_changes(question: Question, prefix: str, rows: int) -> Iterator[tuple[str, Question]]:
    if (changed := advice.int8(question.settings)) is not None:
        yield f"{prefix}model.quantization=int8", dataclasses.replace(question, settings=changed)
    for mesh in advice.other_meshes(question.shapes, rows):
        text = mesh_text(mesh)
        yield f"{prefix}--mesh {text}", question.change(mesh=text)
