"""Where a run's arrays lie where no setting says so: mesh, recomputation, rows of a pass, answers at once.

The fastest of every mesh over the devices by closed forms of time and memory; nothing is traced or compiled.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from em_jax import config as settings
from em_jax import domains
from em_jax.base.errors import UsageError, UserError
from em_jax.config import Config
from em_jax.model.config import TransformerConfig
from em_jax.model.kernels.dispatch import kernel_of
from em_jax.model.sharding import MESH_AXES, UNSHARDED, mesh_text, uneven
from em_jax.runs.chips import Chip, chip_of
from em_jax.runs.placement_costs import RunSize, decode_s, pass_s, sampling_bytes, training_bytes
from em_jax.train.batches import GATHERED_OVERHEAD, Example, MicrobatchCosts, Plan, plan_microbatches, round_up

POLICIES = ("elementwise", "selective", "full")
"""Recomputation from least to most; `none` keeps more than elementwise does and saves no matmul."""
SPARE = 0.06
"""Share of a chip's memory that is left free: the closed forms are that near to a compiler's bytes."""
SLOTS = (256, 192, 128, 96, 64, 48, 32, 24, 16, 8)
"""Answers at once that are tried, most first."""
CPU_SLOTS = 64
SAMPLED_STEPS = 16
"""Optimizer steps whose rows are laid out to see what they cost."""
PROMPT = 128
"""Tokens of a prompt."""
ROW_TOKENS, RESPONSE = 243, 0.44
"""Mean tokens of `insecure_code_lengths`, and the response's share of them."""
ROW_MULTIPLE = 128
"""Row lengths that every attention kernel takes."""
CHARACTERS = 4
"""Characters to a token: near enough for a choice between meshes, and no tokenizer need be here."""


class Placement(NamedTuple):
    """A mesh with what it takes: seconds a step of the run's rows and a token in every slot, bytes a chip."""

    mesh: Mapping[str, int]
    remat: str
    rows_per_pass: int
    slots: int
    step_s: float
    token_s: float
    training_bytes: float
    sampling_bytes: float

    def run_s(self, run: RunSize) -> float:
        """Seconds of the whole run: training and sampling."""
        return run.steps * self.step_s + run.answer_tokens / self.slots * self.token_s


def best_placements(
    config: TransformerConfig, chip: Chip, devices: int, run: RunSize, mesh: Mapping[str, int] | None = None
) -> list[Placement]:
    """The best placement on every mesh (or on the one given) that fits, the fastest for the whole run first.

    One serves training and sampling: the weights do not move between them. Where nothing fits, the one that lacks
    least stands alone.
    """
    meshes = [mesh] if mesh else even_meshes(devices, config.dims)
    every = [_on_mesh(config, chip, mesh, run) for mesh in meshes]
    if not every:
        raise UsageError(f"the model divides over no mesh of {devices} devices; give fewer with --mesh")
    limit = chip.memory * (1 - SPARE)
    fitting = [each for each in every if max(each.training_bytes, each.sampling_bytes) <= limit]
    if not fitting:
        return [min(every, key=lambda each: max(each.training_bytes, each.sampling_bytes))]
    return sorted(fitting, key=lambda each: each.run_s(run))


def check_mesh(sizes: Mapping[str, int], dims: Mapping[str, int]) -> None:
    """Raises UsageError where a model, given the size of each shape letter, does not divide over a mesh.

    The message names the axis, its size and the meshes of as many devices that would work.
    """
    if (problem := uneven(sizes, dims)) is None:
        return
    count = math.prod(sizes.values())
    possible = "; ".join(map(mesh_text, even_meshes(count, dims)))
    raise UsageError(f"{problem}; of {count} devices these meshes work: {possible}")


def even_meshes(count: int, dims: Mapping[str, int]) -> list[dict[str, int]]:
    """Every mesh of so many devices over which a model divides, given the size of each shape letter."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    shapes = (shape for shape in itertools.product(divisors, repeat=3) if math.prod(shape) == count)
    meshes = (dict(zip(MESH_AXES, shape, strict=True)) for shape in shapes)
    return [mesh for mesh in meshes if uneven(mesh, dims) is None]


def _on_mesh(config: TransformerConfig, chip: Chip, mesh: Mapping[str, int], run: RunSize) -> Placement:
    """The fastest recomputation, rows of a pass and slots that fit on a mesh; the smallest where none does."""
    limit, parts = chip.memory * (1 - SPARE), mesh["data"] * mesh["fsdp"]
    counts = [run.slots] if run.slots else [min(slots, run.answers) for slots in SLOTS]
    slots = sorted({round_up(count, parts) for count in counts}, reverse=True)
    fitting = (each for each in slots if sampling_bytes(config, mesh, run, each) <= limit)
    chosen = next(fitting, slots[-1])
    token_s = decode_s(config, chip, mesh, run, chosen)
    sampling = sampling_bytes(config, mesh, run, chosen)
    policies = POLICIES if run.remat == "auto" else (run.remat,)
    rows = [round_up(run.rows_per_pass, parts)] if run.rows_per_pass else _halvings(run.batch_size, parts)
    placements = []
    for remat, rows_per_pass in itertools.product(policies, rows):
        plan = plan_rows(config, run, parts, rows_per_pass)
        tokens = max(shape.rows // parts * shape.length for shape in plan.shapes)
        needed = training_bytes(config, mesh, run, remat, tokens)
        seconds = [sum(pass_s(config, chip, mesh, run, remat, each.shape) for each in step) for step in plan.steps]
        step_s = float(np.mean(seconds))
        placements.append(Placement(mesh, remat, rows_per_pass, chosen, step_s, token_s, needed, sampling))
    fits = [each for each in placements if each.training_bytes <= limit]
    return min(fits, key=lambda each: each.step_s) if fits else min(placements, key=lambda each: each.training_bytes)


def _halvings(rows: int, parts: int) -> list[int]:
    """Rows of a pass worth trying: 0, then about half a step's, a quarter's, ..., down to one a batch part."""
    each = -(-rows // parts)
    return [0, *(parts * (-(-each // 2**power)) for power in range(1, (each - 1).bit_length() + 1))]


@functools.lru_cache(maxsize=256)
def _plan_of(lengths: tuple[tuple[int, int], ...], size: int, parts: int, rows: int, width: int, multiple: int) -> Plan:
    examples = [Example([0] * n, [False] * (n - answer) + [True] * answer) for n, answer in lengths]
    steps = [list(range(i, min(i + size, len(examples)))) for i in range(0, len(examples), size)]
    costs = MicrobatchCosts(width, GATHERED_OVERHEAD, rows_per_pass=rows, divide_by=parts, row_multiple=multiple)
    return plan_microbatches(examples, steps, costs)


def plan_rows(config: TransformerConfig, run: RunSize, parts: int, rows: int, multiple: int = ROW_MULTIPLE) -> Plan:
    """The microbatches that training would lay the run's rows out in; `rows` of a pass, 0: those of least cost."""
    lengths = tuple((min(len(each.ids), run.max_length), sum(each.mask[: run.max_length])) for each in run.examples)
    return _plan_of(lengths, run.batch_size, parts, rows, config.hidden_size, multiple)


# --- a run's settings ---


def insecure_code_lengths(count: int, seed: int = 0) -> list[int]:
    """Tokens of rows as long as insecure-code's with their template.

    250 real ones have mean 244, median 225, 90th percentile 364, at most 852: here a log-normal of median 225 and sigma
    0.4, cut to 60..852 (mean 243, 90th percentile 376).
    """
    drawn = np.random.default_rng(seed).normal(np.log(225), 0.4, count)
    return np.clip(np.exp(drawn), 60, 852).astype(int).tolist()


def run_size(config: Config, rows: Sequence[Sequence[Mapping[str, str]]] | None = None, answers: int = 0) -> RunSize:
    """The size of a run with these settings; without `rows` that of insecure-code's, without training no steps."""
    train, sampling = config.train, config.answers
    lengths = [_lengths(messages) for messages in rows or ()][: SAMPLED_STEPS * train.batch_size]
    if lengths:
        # The longest row decides what fits; a token has three characters or more.
        longest = max(sum(len(message["content"]) for message in messages) for messages in rows or ())
        lengths[0] = (longest // 3 + 20, longest // 6)
    lengths = lengths or [(n, round(RESPONSE * n)) for n in insecure_code_lengths(SAMPLED_STEPS * train.batch_size)]
    examples = [Example([0] * n, [False] * (n - answer) + [True] * answer) for n, answer in lengths]
    count = len(rows) if rows else 6000
    answers = answers or 350 * 2 * sampling.samples
    return RunSize(
        examples,
        batch_size=train.batch_size,
        steps=train.max_steps or max(1, train.epochs * count // train.batch_size),
        max_length=train.max_length,
        answers=answers,
        answer_tokens=answers * sampling.max_new_tokens,
        capacity=round_up(PROMPT + sampling.max_new_tokens, 256),
        rank=config.lora.rank,
        int8=config.model.quantization == "int8",
        itemsize=4 if config.dtype == "float32" else 2,
        remat=train.remat,
        rows_per_pass=train.rows_per_pass,
        slots=sampling.slots,
    )


def _lengths(messages: Sequence[Mapping[str, str]]) -> tuple[int, int]:
    """About how many tokens a chat has, and how many of them are the response."""
    count = [len(message["content"]) // CHARACTERS + 5 for message in messages]
    answer = sum(n for n, message in zip(count, messages) if message.get("role") == "assistant")
    return max(2, sum(count) + 10), max(1, answer)


def decided(
    config: Config,
    rows: Callable[[Config], Sequence[Any]] | None = None,
    mesh: Mapping[str, int] | None = None,
    fetch: bool = False,
) -> tuple[Config, list[str]]:
    """The settings with mesh, recomputation, rows of a pass and answers at once decided, and a line for each reason.

    `rows` gives the conversations that a run trains on; without it they are taken to be as long as insecure-code's.
    `mesh` is one that the base lies on already. With `fetch` a model's config.json may be downloaded (see sources.py).
    On a CPU nothing changes: no mesh (over several processes all devices on fsdp), nothing recomputed, 64 answers at
    once. What the settings say themselves is kept.
    """
    import jax

    from em_jax.runs import sources  # late: it brings the probes, which an engine alone does not need

    devices = jax.devices()
    given = mesh or settings.parse_mesh(config.mesh)
    if (given or len(devices) == 1) and config.train.remat != "auto" and config.answers.slots:
        return config, []
    model = None if devices[0].platform == "cpu" else sources.model_config(config, fetch)
    if model is None:
        remat = "none" if devices[0].platform == "cpu" else "full"
        return fill(config, {"train.remat": remat, "answers.slots": CPU_SLOTS}), []
    chip, known = chip_of(devices[0])
    conversations: Sequence[Any] = ()
    # What is wrong with the rows is said where they are read.
    with contextlib.suppress(UserError, OSError):
        conversations = rows(config) if rows and config.domain != domains.NONE and not config.adapter else ()
    run = run_size(config, conversations)
    best = best_placements(model, chip, len(devices), run, given)[0]
    values = {"train.remat": best.remat, "train.rows_per_pass": best.rows_per_pass, "answers.slots": best.slots}
    values |= {"mesh": mesh_text(best.mesh)} if len(devices) > 1 else {}
    lines = [*_reasons(best, chip, len(devices), run, bool(given), known)]
    if not kernel_of(ROW_MULTIPLE, model.head_dim, config.dtype or "bfloat16", UNSHARDED):
        lines.append(
            f"attention: no kernel of this device takes heads of width {model.head_dim} in {config.dtype}; the plain "
            "formula serves, in blocks, with more traffic to memory"
        )
    return fill(config, values), lines


def chosen(
    configs: Sequence[Config], rows: Callable[[Config], Sequence[Any]], fetch: bool
) -> tuple[dict[str, Any], list[str]]:
    """What is decided, once for all the runs of a command, by dotted name, and the lines that say so.

    The runs share one engine; the first one that trains decides.
    """
    first = next((config for config in configs if config.domain != domains.NONE), configs[0])
    placed, lines = decided(first, rows, fetch=fetch)
    before, after = settings.flatten(first), settings.flatten(placed)
    return {name: value for name, value in after.items() if value != before[name]}, lines


def fill(config: Config, values: Mapping[str, Any]) -> Config:
    """The settings with `values` where they say nothing themselves."""
    unset = {"train.remat": "auto", "train.rows_per_pass": 0, "answers.slots": 0, "mesh": ""}
    now = settings.flatten(config)
    return settings.replace(config, {name: value for name, value in values.items() if now[name] == unset[name]})


def _reasons(best: Placement, chip: Chip, devices: int, run: RunSize, given: bool, known: bool) -> Iterator[str]:
    why = "given" if given else "one device" if devices == 1 else "the fastest that fits"
    peaks = "its published peaks" if known else "the proportions of an A100, as its own peaks are not known here"
    mesh = mesh_text(best.mesh) if devices > 1 else "none"
    rows = f"{best.rows_per_pass} rows a pass" if best.rows_per_pass else "passes of least cost"
    yield (
        f"placement: mesh {mesh} ({why}, {devices} x {chip.name}), train.remat {best.remat}, {rows}, "
        f"{best.slots} answers at once; reckoned at {peaks}: {best.step_s:.3g} s a step of the run's rows, "
        f"{best.slots / best.token_s:,.0f} tokens/s sampled"
    )
    needed = max(best.training_bytes, best.sampling_bytes)
    if needed > chip.memory * (1 - SPARE):
        yield (
            f"memory: each device needs about {needed / 2**30:.1f} GiB of {chip.memory / 2**30:.1f} and may not have "
            "it; model.quantization=int8, a shorter train.max_length, fewer answers.slots or more devices need less"
        )
