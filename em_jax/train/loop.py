"""Fine-tuning: chat rows in, an adapter out; a killed run resumes where it stopped."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import jax

from em_jax.base import host_arrays, multihost, signals
from em_jax.base.errors import Stopping
from em_jax.base.files import Appender, keep_rows
from em_jax.formats.chat_tokenizer import ChatTokenizer
from em_jax.formats.peft import CONFIG, load_adapter, save_adapter
from em_jax.formats.training_state import Checkpoints
from em_jax.lora.adapter import Adapter, init_adapter
from em_jax.lora.config import LoraConfig
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.train.batches import plan_batches
from em_jax.train.config import ADAPTERS_DIRECTORY, TrainConfig
from em_jax.train.log import MetricsLog, Progress
from em_jax.train.step import TrainState, make_optimizer, optimizer_step, state_shardings


def finetune(
    model: Transformer,
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
) -> dict[str, int]:
    """Trains an adapter on chats (lists of messages) and writes it to `directory`/adapter in PEFT's format.

    `directory`/train holds metrics.jsonl, one row per optimizer step, and the checkpoints; `directory`/adapters the
    adapters of the steps that train.keep_adapters names. Called again after a kill, it resumes from the newest
    checkpoint and, on a CPU, ends with the same bits. SIGTERM in any process ends it between two microbatches, after a
    checkpoint of the whole steps, with Stopping. Returns the counts of the rows, see `plan_batches`.

    Of several processes all must call it with the same arguments and the `channel` between them; process 0 alone reads
    and writes `directory`. Raises UserError where the loss or the gradient of a step is not finite (the checkpoints
    before it stay), and where a checkpoint is of another model or adapter.
    """
    first, channel = multihost.is_first(), channel or multihost.ControlChannel()
    if lora.init_from:
        adapter, lora = load_adapter(pathlib.Path(lora.init_from), model.config)
    else:
        adapter = init_adapter(model.config, lora, jax.random.key(seed))
    examples, plan, counts = plan_batches(rows, tokenizer, train, seed, model.config.hidden_size, sharding)
    if channel.share((directory / "adapter" / CONFIG).exists()):
        return counts

    optimizer = make_optimizer(train, len(plan.steps))
    scale = host_arrays.to_devices(adapter.scale, sharding.named(()))
    state = TrainState(adapter.factors, optimizer.init(adapter.factors))
    # Every step donates the state: nothing else may refer to its arrays.
    del adapter
    state = host_arrays.to_devices(state, state_shardings(model.config, state, optimizer, sharding))
    checkpoints = Checkpoints(directory / "train" / "checkpoints", channel)
    done, state = checkpoints.restore(state) or (0, state)

    def save(name: str, state: TrainState) -> None:
        """Writes the adapter to `directory`/`name`; every process must call."""
        adapter = Adapter(*host_arrays.to_host((state.factors, scale)))
        if first:
            save_adapter(directory / name, adapter, lora, model.config, base)

    metrics_path = directory / "train" / "metrics.jsonl"
    if first:
        # The steps after the checkpoint will be trained again.
        keep_rows(metrics_path, lambda row: row.get("step", 0) <= done)
    step_tokens = [sum(len(examples[i].ids) for part in step for row in part.rows for i in row) for step in plan.steps]
    steps, saved, stopped = len(plan.steps), done, False
    with (
        signals.defer_signals() as terminated,
        Appender(metrics_path) if first else contextlib.nullcontext() as out,
        contextlib.closing(checkpoints),
    ):
        log = MetricsLog(directory / "train", out, train, step_tokens, progress)
        for step, microbatches in enumerate(plan.steps[done:], done + 1):
            result = optimizer_step(
                model, state, microbatches, scale=scale, examples=examples, optimizer=optimizer, remat=train.remat,
                sharding=sharding, should_stop=lambda: channel.stopped(terminated())
            )  # fmt: skip
            # Reads the previous step's metrics while this step runs.
            log.flush()
            if result is None:
                stopped = True
                if saved < step - 1:
                    checkpoints.save(step - 1, state)
                break
            state, metrics = result
            log.add(step, metrics)
            keeps_adapter = train.keeps(step, steps)
            checkpointed = step == steps or (train.checkpoint_every and step % train.checkpoint_every == 0)
            if keeps_adapter or checkpointed:
                # Only a step with finite metrics may be kept.
                log.flush()
            if keeps_adapter:
                # Before its checkpoint: every restored step then has its adapter, and retrained steps overwrite theirs.
                save(f"{ADAPTERS_DIRECTORY}/step-{step:06d}", state)
            if checkpointed:
                checkpoints.save(step, state)
                saved = step
    if stopped:
        raise Stopping("asked to stop (SIGTERM, here or in another process); the steps so far are kept")
    save("adapter", state)
    return counts
