"""One optimizer step: the adapter's gradients accumulated over microbatches, then AdamW."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from em_jax.base import host_arrays
from em_jax.base.errors import UsageError
from em_jax.lora.adapter import Adapter, LoraParams, shardings_of
from em_jax.model.config import TransformerConfig
from em_jax.model.kernels.cpu_threads import balance, concurrent_programs
from em_jax.model.kernels.dispatch import TRAINING_OPTIONS
from em_jax.model.kernels.gather import gather_positions
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer
from em_jax.train.batches import Batch, Example, Microbatch, collate
from em_jax.train.config import TrainConfig
from em_jax.train.loss import summed_loss


class GradAccumulator(NamedTuple):
    """Sums over microbatches, float32: gradients of the summed loss, that loss, and the number of labels."""

    gradients: Mapping[str, LoraParams]
    loss: Float[Array, ""]
    tokens: Float[Array, ""]


class TrainState(NamedTuple):
    """The adapter's factors and the optimizer's moments, float32."""

    factors: Mapping[str, LoraParams]
    optimizer: Any


class Metrics(NamedTuple):
    """Of a step: token-mean loss, norm of its gradient before clipping, and number of response tokens."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    tokens: Float[Array, ""]


def learning_rate(train: TrainConfig, steps: int) -> optax.Schedule:
    """The rate of step 0, 1, ...: linear warm-up from 0, then linear or cosine decay to 0 at `steps`, or constant.

    As transformers' schedules linear, cosine and constant_with_warmup. Raises UsageError for another train.schedule.
    """
    left = max(1, steps - train.warmup_steps)
    decays = {
        "linear": optax.linear_schedule(train.learning_rate, 0, left),
        "cosine": optax.cosine_decay_schedule(train.learning_rate, left),
        "constant": optax.constant_schedule(train.learning_rate),
    }
    if train.schedule not in decays:
        raise UsageError(f"train.schedule: expected linear, cosine or constant, found {train.schedule!r}")
    warmup = optax.linear_schedule(0, train.learning_rate, max(1, train.warmup_steps))
    return optax.join_schedules([warmup, decays[train.schedule]], [train.warmup_steps])


@functools.lru_cache(maxsize=8)
def make_optimizer(train: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Equal settings give the same object, so that the runs of a series share the compiled `update`.
    """
    return optax.chain(
        optax.clip_by_global_norm(train.max_grad_norm),
        optax.adamw(learning_rate(train, steps), train.beta1, train.beta2, train.eps, weight_decay=train.weight_decay),
    )


def state_shardings(
    config: TransformerConfig, state: TrainState, optimizer: optax.GradientTransformation, sharding: Sharding
) -> TrainState:
    """The shardings of a state: each moment has that of its factor."""
    factors = shardings_of(config, state.factors, sharding)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, factor: factor, state.optimizer, factors,
        transform_non_params=lambda _: sharding.named(())
    )  # fmt: skip
    return TrainState(factors, moments)


def zero_accumulator(factors: Mapping[str, LoraParams], sharding: Sharding = UNSHARDED) -> GradAccumulator:
    """The accumulator before the first microbatch, on the devices of the later ones: `accumulate` is compiled once."""
    loss, tokens = (jnp.zeros((), jnp.float32, device=sharding.named(())) for _ in range(2))
    return GradAccumulator(jax.tree.map(jnp.zeros_like, factors), loss, tokens)


@functools.partial(jax.jit, static_argnames=("remat", "sharding"), donate_argnums=3, compiler_options=TRAINING_OPTIONS)
def accumulate(
    model: Transformer,
    factors: Mapping[str, LoraParams],
    scale: Mapping[str, Array],
    accumulator: GradAccumulator,
    batch: Batch,
    *,
    remat: str = "none",
    sharding: Sharding = UNSHARDED,
) -> GradAccumulator:
    """Adds a microbatch's gradients and loss to `accumulator`, which is donated. The base is frozen and not copied."""

    def loss(factors: Mapping[str, LoraParams]) -> Array:
        output = model(
            batch.tokens,
            batch.positions,
            batch.segments,
            lora_params=Adapter(factors, scale).lora_params(),
            remat=remat,
            packed=True,
            sharding=sharding,
        )
        hidden = gather_positions(output.hidden, batch.loss_positions, batch.weights)
        return summed_loss(model, hidden, batch.labels, batch.weights, sharding=sharding)

    value, gradients = jax.value_and_grad(loss)(factors)
    return GradAccumulator(
        jax.tree.map(jnp.add, accumulator.gradients, gradients),
        accumulator.loss + value,
        accumulator.tokens + jnp.sum(batch.weights),
    )


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnums=0)
def update(
    state: TrainState, accumulators: Sequence[GradAccumulator], *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One AdamW step on the token-mean gradient over all the accumulators. `state` is donated."""
    total = jax.tree.map(lambda *leaves: sum(leaves), *accumulators)
    tokens = jnp.maximum(total.tokens, 1)
    gradients = jax.tree.map(lambda gradient: gradient / tokens, total.gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.factors)
    metrics = Metrics(total.loss / tokens, optax.global_norm(gradients), total.tokens)
    return TrainState(optax.apply_updates(state.factors, updates), moments), metrics


def optimizer_step(
    model: Transformer,
    state: TrainState,
    microbatches: Sequence[Microbatch],
    *,
    scale: Mapping[str, jax.Array],
    examples: Sequence[Example],
    optimizer: optax.GradientTransformation,
    remat: str = "none",
    sharding: Sharding = UNSHARDED,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics] | None:
    """One step of a plan: accumulates the gradients of its microbatches, then updates the adapter. `state` is donated.

    None, and `state` is unchanged, where `should_stop` is true before one of the microbatches.
    """

    def accumulate_all(microbatches: Sequence[Microbatch]) -> GradAccumulator | None:
        accumulator = zero_accumulator(state.factors, sharding)
        for microbatch in microbatches:
            if should_stop():
                return None
            batch = host_arrays.to_devices(collate(examples, microbatch), sharding.named(("batch", None)))
            accumulator = accumulate(model, state.factors, scale, accumulator, batch, remat=remat, sharding=sharding)
        return accumulator

    shares = balance(microbatches, lambda each: each.shape.rows * each.shape.length, concurrent_programs(sharding))
    accumulators = host_arrays.map_in_threads(accumulate_all, shares, len(shares))
    if any(accumulator is None for accumulator in accumulators):
        return None
    return update(state, accumulators, optimizer=optimizer)
