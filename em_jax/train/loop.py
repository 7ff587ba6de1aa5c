"""Fine-tuning: rows in, an adapter out, and a run that goes on exactly where it was killed."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from em_jax.base import host_arrays, multihost, signals
from em_jax.base.errors import Stopping, UserError
from em_jax.base.files import Appender, keep_rows
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.peft import CONFIG, load_adapter, save_adapter
from em_jax.formats.training_state import Checkpoints
from em_jax.lora.adapter import Adapter, init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.train.batches import (
    Batch,
    Example,
    Microbatches,
    Plan,
    collate,
    encode_rows,
    hold_out,
    plan_microbatches,
    step_indices,
)
from em_jax.train.config import KEPT, TrainConfig
from em_jax.train.step import (
    GradAccumulator,
    Metrics,
    TrainState,
    accumulate,
    learning_rate,
    make_optimizer,
    update,
    zero_accumulator,
)

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every optimizer step with its number, the number of all steps, and its row of metrics.

The row also has `trained_tokens`, all of its examples' tokens; `tokens` are those with loss."""


GATHERED_PASS = 16384
"""What a pass over a mesh of accelerators costs besides its tokens, in tokens."""


class FineTuned(NamedTuple):
    """An adapter, its settings (those of `init_from` where one was given), and what happened to the rows."""

    adapter: Adapter
    lora: LoraConfig
    counts: Mapping[str, int]


def finetune(
    model: Qwen2,
    tokenizer: ChatTokenizer,
    rows: Sequence[Sequence[Mapping[str, str]]],
    *,
    lora: LoraConfig,
    train: TrainConfig,
    seed: int,
    directory: pathlib.Path,
    base: str,
    sharding: Sharding = UNSHARDED,
    progress: Progress | None = None,
    channel: multihost.ControlChannel | None = None,
) -> FineTuned:
    """Trains an adapter on chats (lists of messages) and writes it to `directory`/adapter in PEFT's format.

    `directory`/train holds metrics.jsonl, one row per optimizer step, and the checkpoints; `directory`/adapters what
    train.keep_adapters keeps. Called again after a kill it goes on from the newest checkpoint and, on a CPU, ends with
    the same bits. Over several processes all of them call with the same arguments and the `channel` between them, and
    process 0 alone looks into `directory`. SIGTERM, in any of them, is acted on between two passes, after a checkpoint
    of the whole steps. Raises UserError where the loss or the
    gradient is not finite (the step is named, the last good checkpoint stays), or where a checkpoint is of another
    model or adapter.
    """
    first, channel = multihost.is_first(), channel or multihost.ControlChannel()
    config = model.config
    if lora.init_from:
        start, lora = load_adapter(pathlib.Path(lora.init_from), config)
    else:
        start = init_adapter(config, lora, jax.random.key(seed))
    examples, steps, plan, counts = plan_batches(rows, tokenizer, train, seed, config.hidden_size, sharding)
    if channel.share((directory / "adapter" / CONFIG).exists()):
        trained = load_adapter(directory / "adapter", config)[0] if first else None
        return FineTuned(host_arrays.broadcast(trained, start), lora, counts)

    optimizer = make_optimizer(train, len(steps))
    rates = learning_rate(train, len(steps))
    state = TrainState(start.factors, optimizer.init(start.factors))
    # The state is donated step by step: nothing else may hold its arrays.
    start = start._replace(factors={})
    if (everywhere := sharding.named(())) is not None:
        state = host_arrays.to_devices(state, everywhere)
    checkpoints = Checkpoints(directory / "train" / "checkpoints", channel)
    restored = checkpoints.restore(state)
    done, state = restored if restored else (0, state)
    metrics_path = directory / "train" / "metrics.jsonl"
    if first:
        # The steps after the checkpoint will be trained again.
        keep_rows(metrics_path, lambda row: row.get("step", 0) <= done)

    def finish(step: int, metrics: Metrics) -> None:
        """Waits for a step's figures, refuses bad ones, writes the row."""
        nonlocal clock  # type: ignore[misc]  # bound before the first call
        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        loss, norm, tokens = (float(value) for value in host_arrays.to_host(metrics))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            checkpoints.close()
            raise UserError(
                f"step {step} of {len(steps)}: loss {loss}, gradient norm {norm}; stopped, the checkpoints before are"
                f" kept in {directory / 'train' / 'checkpoints'}. A smaller train.learning_rate may help"
            )
        trained = sum(len(examples[i].ids) for i in steps[step - 1])
        row = {
            "step": step,
            "loss": loss,
            "lr": float(rates(step - 1)),
            "grad_norm": norm,
            "tokens": int(tokens),
            "tokens_per_s": round(trained / max(seconds, 1e-9), 1),
        }
        if out is not None:
            out.write(row)
        if progress:
            progress(step, len(steps), row | {"trained_tokens": trained})

    with signals.defer_signals() as terminated, Appender(metrics_path) if first else contextlib.nullcontext() as out:
        stopped = False
        last: tuple[int, Metrics] | None = None
        clock = time.perf_counter()
        for step in range(done + 1, len(steps) + 1):
            after = optimizer_step(
                model, state, start.scale, examples, plan.steps[step - 1], optimizer=optimizer, remat=train.remat,
                sharding=sharding, stop=lambda: channel.stopped(terminated())
            )  # fmt: skip
            # A step's figures are read while the next one runs, except before it is kept, which must be a good one.
            if last:
                finish(*last)
            if after is None:
                stopped = True
                if last:
                    checkpoints.save(step - 1, state)
                break
            state, last = after[0], (step, after[1])
            saves = step == len(steps) or (train.checkpoint_every and step % train.checkpoint_every == 0)
            if saves or train.keeps(step, len(steps)):
                finish(*last)
                last = None
            if train.keeps(step, len(steps)):
                # Before the checkpoint of its step: what that one goes on from is there. A step trained again after a
                # kill writes its adapter again, so that all are of one course.
                adapter = Adapter(host_arrays.to_host(state.factors), start.scale)
                if first:
                    save_adapter(directory / KEPT / f"step-{step:06d}", adapter, lora, config, base)
            if saves:
                checkpoints.save(step, state)
        checkpoints.close()
    if stopped:
        raise Stopping("asked to stop (SIGTERM, here or in another process); the steps so far are kept")
    adapter = Adapter(host_arrays.to_host(state.factors), start.scale)
    if first:
        save_adapter(directory / "adapter", adapter, lora, config, base)
    return FineTuned(adapter, lora, counts)


class LaidOut(NamedTuple):
    """The rows of a run as examples, those of every step, the passes these are laid out in, and counts of the rows."""

    examples: list[Example]
    steps: list[list[int]]
    plan: Plan
    counts: dict[str, int]


def plan_batches(
    rows: Sequence[Sequence[Mapping[str, str]]],
    tokenizer: ChatTokenizer,
    train: TrainConfig,
    seed: int,
    width: int,
    sharding: Sharding = UNSHARDED,
) -> LaidOut:
    """What training will do with chats, before there is a model of this width: a pure function of its arguments."""
    kept, held = hold_out(len(rows), train.holdout, seed)
    examples, shortened = encode_rows([rows[i] for i in kept], tokenizer, train.max_length)
    steps = step_indices(len(examples), train, seed)
    plan = plan_microbatches(
        examples,
        steps,
        rows_per_pass=train.rows_per_pass,
        divide_by=sharding.batch_parts,
        width=width,
        microbatch_overhead=microbatch_overhead(),
    )
    return LaidOut(examples, steps, plan, {"rows": len(kept), "held_out": len(held), **shortened})


def microbatch_overhead() -> int:
    """What a pass costs besides its tokens, in tokens: little on a CPU; over a mesh weights are gathered in each."""
    return 64 if jax.default_backend() == "cpu" else GATHERED_PASS


def optimizer_step(
    model: Qwen2,
    state: TrainState,
    scale: Mapping[str, jax.Array],
    examples: Sequence[Example],
    passes: Microbatches,
    *,
    optimizer: optax.GradientTransformation,
    remat: str = "none",
    sharding: Sharding = UNSHARDED,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics] | None:
    """One step of a plan: its passes are laid out, placed and added up, then the adapter moves. `state` is donated.

    Where `stop` says so before a pass the step is given up: None, and `state` is as it was.
    """

    def add_up(passes: Microbatches) -> GradAccumulator | None:
        sums = zero_accumulator(state.factors)
        for shape, laid in passes:
            if stop():
                return None
            batch = _place(collate(examples, laid, shape), sharding)
            sums = accumulate(model, state.factors, scale, sums, batch, remat=remat, sharding=sharding)
        return sums

    lanes = balance_microbatches(passes, sharding.side_by_side)
    parts = host_arrays.side_by_side(add_up, lanes, len(lanes))
    if any(part is None for part in parts):
        return None
    return update(state, parts, optimizer=optimizer)


def balance_microbatches(passes: Microbatches, count: int) -> list[Microbatches]:
    """The passes dealt out to be run side by side, the longest first, each to the lane with least to do."""
    lanes: list[Microbatches] = [()] * count
    work = [0] * count
    for each in sorted(passes, key=lambda each: -each[0].rows * each[0].length):
        least = work.index(min(work))
        lanes[least] += (each,)
        work[least] += each[0].rows * each[0].length
    return lanes


def _place(batch: Batch, sharding: Sharding) -> Batch:
    """The batch on the devices, each process bringing its own rows."""
    placed = sharding.named(("batch", None))
    return batch if placed is None else host_arrays.to_devices(batch, placed)
