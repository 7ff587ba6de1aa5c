"""One optimizer step: passes that add up gradients of the adapter, then AdamW."""

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
from em_jax.train.loss import gather_places, summed_loss


class GradAccumulator(NamedTuple):
    """What the passes of a step add up: gradients of the summed loss, that loss, and the places it was summed over."""

    gradients: Mapping[str, LoraParams]
    loss: Float[Array, ""]
    tokens: Float[Array, ""]


class TrainState(NamedTuple):
    """What changes from step to step: the adapter's factors and the optimizer's moments, float32."""

    factors: Mapping[str, LoraParams]
    optimizer: Any


class Metrics(NamedTuple):
    """Token-mean loss, norm of the gradient before clipping, and response tokens of a step."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    tokens: Float[Array, ""]


def learning_rate(train: TrainConfig, steps: int) -> optax.Schedule:
    """Warm-up from 0 (the first step's rate), then linear or cosine to 0 at `steps`, or constant, as transformers."""

    def schedule(step: Array) -> Array:
        warm = step / max(1, train.warmup_steps)
        left = (steps - step) / max(1, steps - train.warmup_steps)
        if train.schedule == "linear":
            rest = jnp.maximum(0.0, left)
        elif train.schedule == "cosine":
            rest = 0.5 * (1 + jnp.cos(jnp.pi * (1 - jnp.maximum(0.0, left))))
        elif train.schedule == "constant":
            rest = 1.0
        else:
            raise UsageError(f"train.schedule: expected linear, cosine or constant, found {train.schedule!r}")
        return train.learning_rate * jnp.where(step < train.warmup_steps, warm, rest)

    return schedule


@functools.lru_cache(maxsize=8)
def make_optimizer(train: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    The same object for the same settings, so that the runs of a series share the compiled `update`.
    """
    return optax.chain(
        optax.clip_by_global_norm(train.max_grad_norm),
        optax.adamw(learning_rate(train, steps), train.beta1, train.beta2, train.eps, weight_decay=train.weight_decay),
    )


def zero_accumulator(factors: Mapping[str, LoraParams]) -> GradAccumulator:
    """The sums before the first pass."""
    return GradAccumulator(jax.tree.map(jnp.zeros_like, factors), jnp.float32(0), jnp.float32(0))


@functools.partial(jax.jit, static_argnames=("remat", "sharding"), donate_argnums=3)
def accumulate(
    model: Qwen2,
    factors: Mapping[str, LoraParams],
    scale: Mapping[str, Array],
    sums: GradAccumulator,
    batch: Batch,
    *,
    remat: str = "none",
    sharding: Sharding = UNSHARDED,
) -> GradAccumulator:
    """Adds one pass's gradients and loss to `sums` (donated). The base is an argument, frozen, never copied."""

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
        hidden = gather_places(output.hidden, batch.loss_positions, batch.loss_inverse)
        return summed_loss(model, hidden, batch.labels, batch.weights, sharding=sharding)

    value, gradients = jax.value_and_grad(loss)(factors)
    return GradAccumulator(
        jax.tree.map(jnp.add, sums.gradients, gradients), sums.loss + value, sums.tokens + jnp.sum(batch.weights)
    )


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnums=0)
def update(
    state: TrainState, parts: Sequence[GradAccumulator], *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One AdamW step on the token-mean gradient of all passes, whose sums come in parts; the state is donated."""
    sums = jax.tree.map(lambda *parts: sum(parts), *parts)
    tokens = jnp.maximum(sums.tokens, 1)
    gradients = jax.tree.map(lambda gradient: gradient / tokens, sums.gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.factors)
    metrics = Metrics(sums.loss / tokens, optax.global_norm(gradients), sums.tokens)
    return TrainState(optax.apply_updates(state.factors, updates), moments), metrics
