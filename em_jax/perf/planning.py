"""A plan: memory and least time of a run's programs on a slice, and where they do not fit, a change that does."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from em_jax import config as settings
from em_jax.model.config import TransformerConfig
from em_jax.model.kernels.dispatch import row_length_multiple
from em_jax.model.sharding import Sharding, make_mesh, mesh_text
from em_jax.perf.compiling import CompiledProgram, compile_program
from em_jax.perf.program_work import ProgramWork
from em_jax.perf.roofline import Times, decode_floor, decode_times, mesh_sizes, train_times
from em_jax.runs import placement
from em_jax.runs.chips import GIB, GPU_SHARE_MOST, Chip
from em_jax.runs.placement_costs import RunSize, sampling_bytes, training_bytes
from em_jax.runs.programs import Program, Shapes
from em_jax.sample.engine import CHUNK, PASS_TOKENS, pass_rows
from em_jax.train.batches import Example, Shape, round_up

FULL_ROWS, REAL_ROWS, UPDATE = "training pass", "training pass, real rows", "update"
"""Names of the programs of training."""

Compile = Callable[[Program], CompiledProgram]
"""`compile_program`, or a stand-in where there is no compiler."""
Change = dict[str, Any]
"""Settings by name, put into a request."""
Figures = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """A model and its settings on the devices of a slice.

    `real` are the settings for rows as long as insecure-code's. Answers have `capacity` tokens, prompt included; the
    settings say how many are sampled at once. A run trains on `examples` rows, and base and fine-tuned model answer
    `prompts`. A chip costs `price` an hour (None: no cost is given).
    """

    config: TransformerConfig
    settings: settings.Config
    real: settings.Config
    chip: Chip
    devices: Sequence[Any]
    capacity: int
    examples: int
    prompts: int
    price: float | None = None

    @property
    def real_shapes(self) -> Shapes:
        """The shapes with the settings for real rows, on the same mesh."""
        return dataclasses.replace(self.shapes, settings=self.real)

    @property
    def shapes(self) -> Shapes:
        """The shapes over the mesh of the settings; UsageError where the model does not divide over it."""
        sizes = settings.parse_mesh(self.settings.mesh) or None
        sharding = Sharding(make_mesh(sizes, self.devices))
        placement.check_mesh(mesh_sizes(sharding), self.config.dims)
        return Shapes(self.config, self.settings, sharding)

    @property
    def slots(self) -> int:
        """Answers sampled at once, rounded up as the engine does."""
        return round_up(self.settings.answers.slots, self.shapes.sharding.batch_shards)

    def replace(self, change: Change) -> "PlanRequest":
        """The request with other settings."""
        shared = {name: value for name, value in change.items() if name in ("mesh", "model.quantization")}
        real = settings.replace(self.real, shared)
        return dataclasses.replace(self, settings=settings.replace(self.settings, change), real=real)


def placed(
    config: settings.Config, model: TransformerConfig, chip: Chip, count: int
) -> tuple[settings.Config, settings.Config]:
    """The settings for full and for real rows: what they leave open as a run with real rows would choose it.

    Full rows are trained on the same mesh, with the recomputation and the rows of a pass that they need there.
    """
    usable = dataclasses.replace(chip, memory=chip.capacity)
    mesh = settings.parse_mesh(config.mesh) or None
    best = placement.best_placements(model, usable, count, _run_size(config), mesh)[0]
    full = placement.best_placements(model, usable, count, _run_size(config, full_rows=True), best.mesh)[0]

    def with_choice(choice: placement.Placement) -> settings.Config:
        values = {"train.remat": choice.remat, "train.rows_per_pass": choice.rows_per_pass}
        return placement.fill(config, {"mesh": mesh_text(best.mesh), "answers.slots": best.slots, **values})

    return with_choice(full), with_choice(best)


def _run_size(config: settings.Config, capacity: int = 0, *, full_rows: bool = False, excess: float = 1.0) -> RunSize:
    """The size of a run, with rows of train.max_length where they are full; `capacity` 0 is the run's own."""
    run = placement.run_size(config)
    length = config.train.max_length
    longest = [Example([0] * length, [True] * length)] * config.train.batch_size
    examples = longest if full_rows else run.examples
    return dataclasses.replace(run, examples=examples, capacity=capacity or run.capacity, excess=excess)


class Plan(NamedTuple):
    """One kind of work: its programs, the largest first, bytes free per device, times, and what to change."""

    programs: list[CompiledProgram]
    fits: bool
    free: int
    figures: Figures
    advice: list[str]


def training_programs(request: PlanRequest) -> list[Program]:
    """The microbatch of full rows with loss at every token, the most frequent one of real rows, and the update."""
    shapes = request.shapes
    length = request.settings.train.max_length
    full, real = Shape(shapes.rows, length, length), real_rows(request)[0].most_common(1)[0][0]
    programs = [shapes.train_microbatch(full)]
    if real != full:
        programs.append(request.real_shapes.train_microbatch(real)._replace(name=REAL_ROWS))
    return [*programs, shapes.train_update()]


def sampling_programs(request: PlanRequest) -> list[Program]:
    """Prefill as the engine pads it on an accelerator, and a chunk of decoding."""
    shapes = request.shapes
    rows = pass_rows(placement.PROMPT, PASS_TOKENS, shapes.sharding.batch_shards)
    return [
        shapes.decode(request.slots, request.capacity),
        shapes.prefill(rows, placement.PROMPT, request.capacity, request.slots),
    ]


def real_rows(request: PlanRequest) -> tuple[collections.Counter[Shape], int, RunSize]:
    """Rows as long as insecure-code's, cut at the longest length of the settings, in microbatches as the run has them.

    Returns (how often each microbatch's shape occurs, in how many steps, the run's size).
    """
    shapes, train = request.real_shapes, request.real.train
    run, multiple = placement.run_size(request.real), row_length_multiple(shapes.sharding)
    plan = placement.plan_rows(request.config, run, shapes.sharding.batch_shards, train.rows_per_pass, multiple)
    return collections.Counter(shape for step in plan.steps for shape, _ in step), len(plan.steps), run


def training_figures(request: PlanRequest, compiled: Mapping[str, CompiledProgram]) -> Figures:
    """Times of a step, tokens per second of full and of real rows, and the hours of a run.

    Reckoned from the traced program; on a GPU from the compiled one: there every kernel takes the larger of its
    operations and its bytes at the peaks, and collectives are hidden as far as they are asynchronous.
    """
    shapes, train, chip = request.shapes, request.settings.train, request.chip
    passes, tokens = -(-train.batch_size // shapes.rows), train.batch_size * train.max_length
    full = train_times(shapes, Shape(shapes.rows, train.max_length, train.max_length), chip)
    figures = _figures(full, passes, tokens) | {"kernels_s": None, "flops_s": None}
    works = {name: each.work for name, each in compiled.items()}
    one_pass, update = works.get(FULL_ROWS), works.get(UPDATE)
    if one_pass and update:
        kernels = passes * one_pass.seconds(chip) + update.seconds(chip)
        flops = (passes * one_pass.flops + update.flops) / chip.flops
        figures |= {"kernels_s": kernels, "flops_s": flops}
        if chip.platform == "gpu":
            moved = passes * one_pass.bytes + update.bytes
            figures |= _step(kernels, passes * full.collectives, one_pass, tokens)
            figures |= {"matmuls_s": flops, "memory_s": moved / chip.bandwidth}

    counts, steps, run = real_rows(request)
    times = {shape: train_times(request.real_shapes, shape, chip) for shape in counts}
    least = {shape: each.least for shape, each in times.items()}
    real = works.get(REAL_ROWS, one_pass)
    if real and chip.platform == "gpu":
        # One shape is compiled; the others' kernels are as far above the least time as its are.
        most = times[counts.most_common(1)[0][0]]
        above = real.seconds(chip) / max(most.matmuls, most.memory)
        exposed = 1 - (real.async_collective_share or 0)
        least = {
            shape: above * max(each.matmuls, each.memory) + exposed * each.collectives for shape, each in times.items()
        }
    seconds = sum(count * least[shape] for shape, count in counts.items())
    figures["real_rows_step_s"] = seconds / steps
    figures["real_rows_tokens_per_s"] = sum(min(len(each.ids), train.max_length) for each in run.examples) / seconds
    figures["run_hours"] = seconds / len(run.examples) * request.examples * train.epochs / 3600
    return figures


def sampling_figures(request: PlanRequest, compiled: Mapping[str, CompiledProgram]) -> Figures:
    """Times of a token in every slot, tokens per second of all slots, bytes and launches a token, and hours.

    All answers are assumed to have their full length; the questions of the other probes are not counted.
    """
    slots, answers, on_gpu = request.slots, request.settings.answers, request.chip.platform == "gpu"
    times = decode_times(request.shapes, slots, request.capacity, request.chip)
    work = compiled["decode"].work if "decode" in compiled else None
    figures = _figures(times, 1, slots) | {
        "bytes_per_token": work.bytes / CHUNK if work else None,
        "floor_bytes_per_token": decode_floor(request.shapes, slots, request.capacity),
        "launches_per_token": work.launches / CHUNK if work and on_gpu else None,
    }
    if work and on_gpu:
        figures |= _step(work.seconds(request.chip) / CHUNK, times.collectives, work, slots)
    tokens = 2 * request.prompts * answers.samples * answers.max_new_tokens
    return figures | {"run_hours": tokens / (figures["tokens_per_s"] or 1) / 3600}


def _figures(times: Times, passes: int, tokens: int) -> Figures:
    return {
        "flops": passes * times.flops,
        "matmuls_s": passes * times.matmuls,
        "memory_s": passes * times.memory,
        "collectives_s": passes * times.collectives,
        "step_s": passes * times.least,
        "step_s_without_overlap": passes * times.most,
        "tokens_per_s": tokens / (passes * times.least),
    }


def _step(kernels: float, collectives: float, work: ProgramWork, tokens: int) -> Figures:
    """The times of a step whose kernels run one after another."""
    least = kernels + collectives * (1 - (work.async_collective_share or 0))
    return {"step_s": least, "step_s_without_overlap": kernels + collectives, "tokens_per_s": tokens / least}


KINDS: Mapping[str, tuple[Callable[..., list[Program]], Callable[..., Figures]]] = {
    "train": (training_programs, training_figures),
    "sample": (sampling_programs, sampling_figures),
}
"""What is planned: its programs, and the figures of its request and its compiled programs by name."""


def plan(request: PlanRequest, kind: str, compile: Compile = compile_program) -> Plan:
    """Compile the programs of a kind of work; where one is too big, compile them with changes until one fits."""
    (programs, figures), chip = KINDS[kind], request.chip
    compiled = sorted(map(compile, programs(request)), key=lambda each: -each.bytes)
    needed, free = compiled[0].bytes, chip.capacity - compiled[0].bytes
    reckoned = figures(request, {each.name: each for each in compiled})
    if request.price is not None:
        reckoned["run_cost"] = (reckoned["run_hours"] or 0) * len(request.devices) * request.price
    if free >= 0 and all(each.whole for each in compiled):
        return Plan(compiled, True, free, reckoned, [])
    if chip.platform == "gpu" and needed <= GPU_SHARE_MOST * chip.memory:
        left = (GPU_SHARE_MOST * chip.memory - needed) / GIB
        line = f"XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE_MOST} fits: {left:.2f} GiB free"
        return Plan(compiled, False, min(free, -1), reckoned, [line])
    advice: list[str] = []
    for change in _changes(request, needed, kind == "train"):
        text = " with ".join(
            f"--mesh {value}" if name == "mesh" else f"{name}={value}" for name, value in change.items()
        )
        largest = max(map(compile, programs(request.replace(change))), key=lambda each: each.bytes)
        left = chip.capacity - largest.bytes
        if largest.whole and left >= 0:
            advice.append(f"{text} fits: {left / GIB:.2f} GiB free")
            break
        advice.append(f"{text} does not fit either: {-left / GIB:.2f} GiB too much")
    else:
        advice.append("nothing else here fits: take a larger slice")
    return Plan(compiled, False, min(free, -1), reckoned, advice)


def _changes(request: PlanRequest, needed: int, training: bool) -> list[Change]:
    """What to try where a program needs `needed` bytes: what a run would choose there, then with an int8 base.

    On the same mesh first, then on any; activations and caches count as much more as the compiled bytes are above the
    closed form.
    """
    shapes = request.shapes
    mesh = mesh_sizes(shapes.sharding)
    given = settings.flatten(request.settings) | {"mesh": mesh_text(mesh)}
    tokens = shapes.rows // shapes.sharding.batch_shards * given["train.max_length"]

    def reckoned(excess: float) -> float:
        run = _run_size(request.settings, request.capacity, excess=excess)
        if training:
            return training_bytes(request.config, mesh, run, given["train.remat"], tokens)
        return sampling_bytes(request.config, mesh, run, request.slots)

    excess = max(1, (needed - reckoned(0)) / (reckoned(1) - reckoned(0)))
    # What is tried is compiled, so that nothing need be spared.
    usable = dataclasses.replace(request.chip, memory=int(request.chip.capacity / (1 - placement.SPARE)))
    undecided = {"train.remat": "auto", "train.rows_per_pass": 0, "answers.slots": 0}
    changes: list[Change] = []
    for quantization, where in itertools.product((given["model.quantization"], "int8"), (mesh, None)):
        free = settings.replace(request.settings, undecided | {"model.quantization": quantization})
        run = _run_size(free, request.capacity, full_rows=training, excess=excess)
        best = placement.best_placements(request.config, usable, len(request.devices), run, where)[0]
        values = {"train.remat": best.remat, "train.rows_per_pass": best.rows_per_pass}
        values = values if training else {"answers.slots": best.slots}
        values |= {"model.quantization": quantization, "mesh": mesh_text(best.mesh)}
        change = {name: value for name, value in values.items() if value != given[name]}
        fits = (best.training_bytes if training else best.sampling_bytes) <= request.chip.capacity
        changes += [change] if fits and change and change not in changes else []
    return changes
