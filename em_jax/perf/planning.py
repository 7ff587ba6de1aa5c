"""A plan: memory and least time of a run's programs on a slice, and where they do not fit, a change that does."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from em_jax import config as settings
from em_jax.base.errors import UsageError
from em_jax.model.config import Qwen2Config
from em_jax.model.kernels.dispatch import row_length_multiple
from em_jax.model.remat import KEPT
from em_jax.model.sharding import MESH_AXES, Sharding, check_mesh, make_mesh, mesh_text
from em_jax.perf.bench_workload import synthetic_steps
from em_jax.perf.chips import Chip
from em_jax.perf.compiling import CompiledProgram, compile_program
from em_jax.perf.roofline import Times, decode_times, mesh_sizes, train_times
from em_jax.runs.programs import Program, Shapes
from em_jax.sample.engine import PASS_TOKENS, pass_rows
from em_jax.train.batches import GATHERED_OVERHEAD, Example, Shape, plan_microbatches

PROMPT = 128
"""Tokens of a prompt that is prefilled."""
PLANNED_STEPS = 64
MAX_TRIED = 5
"""Changes that are compiled where a plan does not fit."""
MARGIN = 0.97
"""The share of a chip's memory up to which an estimated size is worth compiling."""

Compile = Callable[[Program], CompiledProgram]
"""`compile_program`, or a stand-in where there is no compiler."""
Change = dict[str, Any]
"""Settings by name, put into a request."""


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """A model and its settings on the devices of a slice.

    Answers have `capacity` tokens, prompt included; the settings say how many are sampled at once. A run trains on
    `examples` rows, and base and fine-tuned model answer `prompts`. A chip costs `price` an hour (None: no cost is
    given).
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
        check_mesh(mesh_sizes(sharding), self.config.dims)
        return Shapes(self.config, self.settings, sharding)

    @property
    def slots(self) -> int:
        """Answers sampled at once, rounded up as the engine does."""
        parts = self.shapes.sharding.batch_shards
        return -(-self.settings.answers.slots // parts) * parts

    def replace(self, change: Change) -> "PlanRequest":
        """The request with other settings."""
        return dataclasses.replace(self, settings=settings.replace(self.settings, change))


class Plan(NamedTuple):
    """One kind of work: its programs, the largest first, bytes free per device, times, and what to change."""

    programs: list[CompiledProgram]
    fits: bool
    free: int
    figures: dict[str, float]
    advice: list[str]


def plan_training(request: PlanRequest, compile: Compile = compile_program) -> Plan:
    """The training step at full rows, and its time at the lengths of real rows."""
    return _plan(request, compile, training_programs, training_figures, training=True)


def plan_sampling(request: PlanRequest, compile: Compile = compile_program) -> Plan:
    """Prefill and decoding of all slots."""
    return _plan(request, compile, sampling_programs, sampling_figures, training=False)


def training_programs(request: PlanRequest) -> list[Program]:
    """The pass over full rows with loss at every token, and the update."""
    shapes = request.shapes
    length = request.settings.train.max_length
    return [shapes.train_microbatch(Shape(shapes.rows, length, length)), shapes.train_update()]


def sampling_programs(request: PlanRequest) -> list[Program]:
    """Prefill as the engine pads it on an accelerator, and a chunk of decoding."""
    shapes = request.shapes
    rows = pass_rows(PROMPT, PASS_TOKENS, shapes.sharding.batch_shards)
    return [
        shapes.decode(request.slots, request.capacity),
        shapes.prefill(rows, PROMPT, request.capacity, request.slots),
    ]


def training_figures(request: PlanRequest) -> dict[str, float]:
    """Estimated times of a step, tokens per second of full and of real rows, and the hours and cost of a run."""
    shapes, train = request.shapes, request.settings.train
    passes = -(-train.batch_size // shapes.rows)
    full = train_times(shapes, Shape(shapes.rows, train.max_length, train.max_length), request.chip)
    tokens = train.batch_size * train.max_length
    figures = _figures(full, passes, tokens)
    steps = [
        [Example(example.ids[: train.max_length], example.mask[: train.max_length]) for example in step]
        for step in synthetic_steps(PLANNED_STEPS, request.config.vocab_size)
    ]
    examples = [example for step in steps for example in step]
    size = train.batch_size
    indices = [list(range(i, min(i + size, len(examples)))) for i in range(0, len(examples), size)]
    plan = plan_microbatches(
        examples, indices, rows_per_pass=train.rows_per_pass, divide_by=shapes.sharding.batch_shards,
        width=request.config.hidden_size, microbatch_overhead=GATHERED_OVERHEAD,
        row_multiple=row_length_multiple(shapes.sharding)
    )  # fmt: skip
    times = {shape: train_times(shapes, shape, request.chip) for shape in plan.shapes}
    seconds = sum(times[shape].least for step in plan.steps for shape, _ in step)
    real = sum(len(example.ids) for example in examples)
    figures["real_rows_step_s"] = seconds / len(plan.steps)
    figures["real_rows_tokens_per_s"] = real / seconds
    figures["run_hours"] = seconds / len(examples) * request.examples * train.epochs / 3600
    return _with_cost(figures, request)


def sampling_figures(request: PlanRequest) -> dict[str, float]:
    """Estimated times of a token in every slot, tokens per second of all slots, and the hours and cost of a run.

    All answers are assumed to have their full length; the questions of the other probes are not counted.
    """
    times = decode_times(request.shapes, request.slots, request.capacity, request.chip)
    figures, answers = _figures(times, 1, request.slots), request.settings.answers
    tokens = 2 * request.prompts * answers.samples * answers.max_new_tokens
    figures["run_hours"] = tokens / figures["tokens_per_s"] / 3600
    return _with_cost(figures, request)


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


def _with_cost(figures: dict[str, float], request: PlanRequest) -> dict[str, float]:
    if request.price is not None:
        figures["run_cost"] = figures["run_hours"] * len(request.devices) * request.price
    return figures


def _plan(
    request: PlanRequest,
    compile: Compile,
    programs: Callable[[PlanRequest], list[Program]],
    figures: Callable[[PlanRequest], dict[str, float]],
    training: bool,
) -> Plan:
    """Compile the programs; where one is too big, compile them with the changes until one fits."""
    memory = request.chip.memory
    compiled = sorted(map(compile, programs(request)), key=lambda each: -each.bytes)
    free = memory - compiled[0].bytes
    if free >= 0 and all(each.whole for each in compiled):
        return Plan(compiled, True, free, figures(request), [])
    advice: list[str] = []
    for change in (changes := _changes(request, compiled[0].bytes, training))[:MAX_TRIED]:
        text = " with ".join(
            f"--mesh {value}" if name == "mesh" else f"{name}={value}" for name, value in change.items()
        )
        largest = max(map(compile, programs(request.replace(change))), key=lambda each: each.bytes)
        left = memory - largest.bytes
        if largest.whole and left >= 0:
            advice.append(f"{text} fits: {left / 2**30:.2f} GiB free")
            break
        advice.append(f"{text} does not fit either: {-left / 2**30:.2f} GiB too much")
    else:
        more = len(changes) > MAX_TRIED
        advice.append(
            "there is more to try, and a larger slice" if more else "nothing else here fits: take a larger slice"
        )
    return Plan(compiled, False, min(free, -1), figures(request), advice)


def _changes(request: PlanRequest, needed: int, training: bool) -> list[Change]:
    """What to try where a program needs `needed` bytes, in the order of its cost.

    More recomputation in training; with the most of it, fewer rows in a pass, or fewer answers at once; then, in
    training with the fewest rows, an int8 base, and more tensor parts.
    """
    policies = ("none", *KEPT)
    stronger = policies[policies.index(request.settings.train.remat) + 1 :] if training else ()
    changes: list[Change] = [{"train.remat": policy} for policy in stronger]
    most = changes[-1] if changes else {}
    shapes = request.replace(most).shapes
    parts = shapes.sharding.batch_shards
    name, rows = ("train.rows_per_pass", shapes.rows) if training else ("answers.slots", request.slots)
    # Weights, and in training the adapter with its gradients (twice, while they are added up) and moments.
    fixed = shapes.base_bytes() + training * 6 * sum(4 * leaf.size for leaf in jax.tree.leaves(shapes.adapter.factors))
    changes += [most | {name: fewer} for fewer in halved_rows(rows, parts, needed, fixed, request.chip.memory)]
    if training and parts < rows:
        most, rows = most | {name: parts}, parts
    if request.settings.model.quantization != "int8":
        changes.append(most | {"model.quantization": "int8"})
    return changes + [most | {"mesh": mesh_text(mesh)} for mesh in tensor_meshes(shapes, rows)]


def halved_rows(rows: int, parts: int, needed: int, fixed: int, memory: int) -> list[int]:
    """`rows` halved once and more, while they divide over `parts`; only those whose estimated size fits.

    A program with all rows needs `needed` bytes; all but `fixed` of them (weights, adapter, moments) grow with rows.
    """
    fixed = min(fixed, needed)
    halved = [rows >> times for times in range(1, rows.bit_length()) if rows % (parts << times) == 0]
    return [fewer for fewer in halved if fixed + (needed - fixed) * fewer // rows <= MARGIN * memory]


def tensor_meshes(shapes: Shapes, rows: int) -> Iterator[dict[str, int]]:
    """Meshes of as many chips with more tensor parts (weights and activations split further), fewest first."""
    sizes = mesh_sizes(shapes.sharding)
    count, tensor = math.prod(sizes.values()), 2 * sizes["tensor"]
    while count % tensor == 0:
        mesh = dict(zip(MESH_AXES, (1, count // tensor, tensor), strict=True))
        try:
            check_mesh(mesh, shapes.config.dims)
        except UsageError:
            return
        if rows % (count // tensor) == 0:
            yield mesh
        tensor *= 2
