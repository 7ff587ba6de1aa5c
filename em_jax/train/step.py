"""One optimizer step: the adapter's gradients accumulated over microbatches, then AdamW."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from em_jax.base.errors import UsageError
from em_jax.lora.adapter import Adapter, LoraParams
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.train.batches import Batch
from em_jax.train.config import TrainConfig
from em_jax.train.loss import gather_hidden, summed_loss


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

    As transformers' schedules. Raises UsageError for another train.schedule.
    """

    def schedule(step: Array) -> Array:
        warmup = step / max(1, train.warmup_steps)
        left = (steps - step) / max(1, steps - train.warmup_steps)
        if train.schedule == "linear":
            decay = jnp.maximum(0.0, left)
        elif train.schedule == "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * (1 - jnp.maximum(0.0, left))))
        elif train.schedule == "constant":
            decay = 1.0
        else:
            raise UsageError(f"train.schedule: expected linear, cosine or constant, found {train.schedule!r}")
        return train.learning_rate * jnp.where(step < train.warmup_steps, warmup, decay)

    return schedule


@functools.lru_cache(maxsize=8)
def make_optimizer(train: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Equal settings give the same object, so that the runs of a series share the compiled `update`.
    """
    return optax.chain(
        optax.clip_by_global_norm(train.max_grad_norm),
        optax.adamw(learning_rate(train, steps), train.beta1, train.beta2, train.eps, weight_decay=train.weight_decay),
    )


def zero_accumulator(factors: Mapping[str, LoraParams]) -> GradAccumulator:
    """The accumulator before the first microbatch."""
    return GradAccumulator(jax.tree.map(jnp.zeros_like, factors), jnp.float32(0), jnp.float32(0))


@functools.partial(jax.jit, static_argnames=("remat", "sharding"), donate_argnums=3)
def accumulate(
    model: Qwen2,
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
        hidden = gather_hidden(output.hidden, batch.loss_positions, batch.loss_inverse, sharding=sharding)
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
