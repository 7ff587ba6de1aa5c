"""Low-rank updates, with a backward pass written by hand in the order of operands XLA:CPU needs."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from em_jax.model.layout import einsum_f32
from em_jax.model.remat import LOW
from em_jax.model.sharding import UNSHARDED, Sharding

JOINT = "+"
"""Joins the names of targets into that of their common adapter."""


def _gathered(
    x: Array, a: Sequence[Array], b: Sequence[Array], letters: tuple[str, ...], sharding: Sharding
) -> tuple[Float[Array, "X S R"], list[Array]]:
    """A's side by side and every B, as their matmuls read them."""
    a = [sharding.gather_for_matmul(f"{each[0]}SR", factor.astype(x.dtype)) for each, factor in zip(letters, a)]
    b = [sharding.gather_for_matmul(f"SR{each[1]}", factor.astype(x.dtype)) for each, factor in zip(letters, b)]
    return jnp.concatenate(a, -1), b


def _gain_of_ranks(gain: Sequence[Float[Array, "#B S"]], b: Sequence[Array]) -> Float[Array, "#B 1 S R"]:
    """The gain of every rank of A's that stand side by side."""
    each = [jnp.broadcast_to(g[:, None, :, None], (len(g), 1, *factor.shape[:2])) for g, factor in zip(gain, b)]
    return jnp.concatenate(each, -1)


def _scales_outputs(x: Float[Array, "B T X"], a: Sequence[Float[Array, "X S R"]]) -> bool:
    """Whether outputs take the gain, not ranks: with one adapter and one token a row that saves a kernel."""
    return a[0].shape[1] == 1 and x.shape[1] == 1


def _split_ranks(low: Float[Array, "B T S R"], b: Sequence[Array]) -> list[Array]:
    """The ranks of each B."""
    return jnp.split(low, list(itertools.accumulate(factor.shape[1] for factor in b))[:-1], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def low_rank(
    x: Float[Array, "B T X"],
    a: tuple[Float[Array, "X S R"], ...],
    b: tuple[Float[Array, "S R Y"], ...],
    gain: tuple[Float[Array, "#B S"], ...],
    letters: tuple[str, ...] = ("XY",),
    sharding: Sharding = UNSHARDED,
) -> list[Float[Array, "B T Y"]]:
    """Sum over S of gain_S (x A_S) B_S for each weight of X inputs and its Y outputs; x A is one product for all.

    The gradients of `a` and `b` are float32, `gain` gets none; autodiff would multiply float32 by 16 bits and round
    them to those. `letters` stand for each X and Y in the sharding table: over a mesh `a` and `b` are gathered in the
    dtype of `x`, and their gradients are summed where they are stored.
    """
    return _low_rank_forward(x, a, b, gain, letters, sharding)[0]


def low_rank_updates(
    x: Float[Array, "B T X"],
    letters: Mapping[str, str],
    lora_params: Mapping[str, Any],
    adapter_mask: Float[Array, "B S"] | None,
    sharding: Sharding,
) -> dict[str, Float[Array, "B T Y"]]:
    """The update of each target of `letters` that has one: "DF" are the letters of a target's inputs and outputs.

    `lora_params` are `LoraWeights` by target; those of several targets stand under all their names, see
    `joined.with_stacks`, and their updates are as wide as the widest.
    """

    def gain(lora: Any) -> Float[Array, "#B S"]:
        return lora.scale[None] * (1 if adapter_mask is None else adapter_mask)

    for name, stack in lora_params.items():
        first, *others = name.split(JOINT)
        if others and first in letters:
            low = stacked_low(x, stack, letters[first][0], sharding)
            y = einsum_f32("BTJR,JRY->JBTY", low, stack.b[0]).astype(x.dtype)
            return dict(zip([first, *others], (y * gain(stack)[None, :, None]).astype(x.dtype)))
    present = {name: pair for name, pair in letters.items() if name in lora_params}
    if not present:
        return {}
    given = [lora_params[name] for name in present]
    a = tuple(lora.a.reshape(x.shape[-1], *lora.a.shape[-2:]) for lora in given)
    b = tuple(lora.b.reshape(*lora.b.shape[:2], -1) for lora in given)
    return dict(zip(present, low_rank(x, a, b, tuple(map(gain, given)), tuple(present.values()), sharding)))


def stacked_low(x: Float[Array, "B T X"], stack: Any, letter: str, sharding: Sharding) -> Float[Array, "B T J R"]:
    """x A of the J targets of an adapter `joined.with_stacks`, for inputs of this letter."""
    a = sharding.gather_for_matmul(f"{letter}SR", stack.a.reshape(x.shape[-1], *stack.a.shape[-2:]))
    return einsum_f32("BTX,XSR->BTSR", x, a).astype(x.dtype).reshape(*x.shape[:2], *stack.b.shape[1:3])


def _low_rank_forward(
    x: Array, a: tuple, b: tuple, gain: tuple, letters: tuple[str, ...], sharding: Sharding
) -> tuple[list[Array], tuple]:
    joint_a, in_use_b = _gathered(x, a, b, letters, sharding)
    low = einsum_f32("BTX,XSR->BTSR", x, joint_a)
    low = low if _scales_outputs(x, a) else low * _gain_of_ranks(gain, b)
    low = checkpoint_name(low.astype(x.dtype), LOW)
    y = [einsum_f32("BTSR,SRY->BTY", *each).astype(x.dtype) for each in zip(_split_ranks(low, b), in_use_b)]
    y = [(each * g[:, None]).astype(x.dtype) for each, g in zip(y, gain)] if _scales_outputs(x, a) else y
    return y, (x, a, b, gain, low)


def _low_rank_backward(
    letters: tuple[str, ...], sharding: Sharding, saved: tuple, dy: list[Array]
) -> tuple[Array, tuple, tuple, None]:
    """XLA:CPU transposes a contraction's first operand; put the rank-R one there.

    Autodiff puts `dy` there, which takes a quarter of the training step's time.
    """
    x, a, b, gain, low = saved
    x = sharding.operand(letters[0][0], x)
    dy = [sharding.operand(names[1], each) for names, each in zip(letters, dy)]
    joint_a, in_use_b = _gathered(x, a, b, letters, sharding)
    dlow = jnp.concatenate([einsum_f32("BTY,SRY->BTSR", *each) for each in zip(dy, in_use_b)], -1)
    dlow = (dlow * _gain_of_ranks(gain, b)).astype(x.dtype)
    low = (low * _gain_of_ranks(gain, b)).astype(x.dtype) if _scales_outputs(x, a) else low
    dx = einsum_f32("BTSR,XSR->BTX", dlow, joint_a).astype(x.dtype)
    by_a = _split_ranks(jnp.moveaxis(einsum_f32("BTSR,BTX->SRX", dlow, x), 2, 0), b)
    by_b = [einsum_f32("BTSR,BTY->SRY", *each) for each in zip(_split_ranks(low, b), dy)]
    da = tuple(sharding.scatter_factor(f"{each[0]}SR", gradient) for each, gradient in zip(letters, by_a))
    db = tuple(sharding.scatter_factor(f"SR{each[1]}", gradient) for each, gradient in zip(letters, by_b))
    return dx, da, db, None


low_rank.defvjp(_low_rank_forward, _low_rank_backward)
