"""A linear layer and the low-rank update it may carry."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int8

from em_jax.model.remat import LOW
from em_jax.model.sharding import UNSHARDED, Sharding

einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
"""An einsum that adds up in float32, whatever the dtype of its operands."""


class Quantized(NamedTuple):
    """A weight in eight bits, symmetric about zero: the weight is values * scale, each within half a step (a scale)."""

    values: Int8[Array, "*weight"]
    scale: Float[Array, "*outputs"]


ParamInit = Callable[[str, str], Array | Quantized]
"""Gives the array of a weight from its checkpoint name and its layout in shape letters, "inputs->outputs".

A Linear's weight may come `Quantized`."""


def quantize(layout: str, weight: Float[Array, "*weight"]) -> Quantized:
    """The nearest of 255 steps per weight, the largest of each output at +-127; an output of zeros has scale 0."""
    inputs = range(len(layout.split("->")[0]))
    wide = weight.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=tuple(inputs)) / 127
    steps = wide / jnp.expand_dims(jnp.where(scale == 0, 1, scale), tuple(inputs))
    return Quantized(jnp.round(steps).astype(jnp.int8), scale)


class LoraWeights(NamedTuple):
    """The update of one weight by S adapters of rank R at once: x -> sum over S of scale_S (x A_S) B_S.

    A is [inputs, S, R] and B [S, R, outputs] in the weight's own input and output letters, float32; scale is [S].
    """

    a: Float[Array, "*inputs S R"]
    b: Float[Array, "S R *outputs"]
    scale: Float[Array, "S"]


@jax.custom_vjp
def low_rank(
    x: Float[Array, "B T X"], a: Float[Array, "X S R"], b: Float[Array, "S R Y"], gain: Float[Array, "#B S"]
) -> Float[Array, "B T Y"]:
    """Sum over S of gain_S (x A_S) B_S for a weight of X inputs and Y outputs; nothing is learnt about `gain`."""
    return _low_rank_forward(x, a, b, gain)[0]


def _low_rank_forward(x: Array, a: Array, b: Array, gain: Array) -> tuple[Array, tuple]:
    low = einsum_f32("BTX,XSR->BTSR", x, a.astype(x.dtype))
    low = checkpoint_name((low * gain[:, None, :, None]).astype(x.dtype), LOW)
    return einsum_f32("BTSR,SRY->BTY", low, b.astype(x.dtype)).astype(x.dtype), (x, a, b, gain, low)


def _low_rank_backward(saved: tuple, dy: Array) -> tuple[Array, Array, Array, None]:
    """The gradients by hand, for the order of operands: XLA on a CPU copies the first one transposed when tokens are
    summed over, so it had better be the thin one. Autodiff puts `dy` there, a quarter of the training step's time."""
    x, a, b, gain, low = saved
    dlow = einsum_f32("BTY,SRY->BTSR", dy, b.astype(x.dtype))
    dlow = (dlow * gain[:, None, :, None]).astype(x.dtype)
    dx = einsum_f32("BTSR,XSR->BTX", dlow, a.astype(x.dtype)).astype(x.dtype)
    da = jnp.moveaxis(einsum_f32("BTSR,BTX->SRX", dlow, x), 2, 0)
    return dx, da, einsum_f32("BTSR,BTY->SRY", low, dy), None


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Linear(nnx.Module):
    """y = x W + b, with W kept as [inputs, outputs] in shape letters: "D->NH" is a [D, N, H] array.

    A quantised W is never made whole: its int8 enters the matmul and the outputs are scaled.
    """

    def __init__(self, name: str, layout: str, init: ParamInit, *, bias: bool = False):
        self.name = name
        self.layout = layout
        made = init(f"{name}.weight", layout)
        values, scale = made if isinstance(made, Quantized) else (made, None)
        self.weight = nnx.Param(values)
        self.scale = None if scale is None else nnx.Param(scale)
        self.bias = nnx.Param(init(f"{name}.bias", layout.split("->")[1])) if bias else None

    def __call__(
        self,
        x: Float[Array, "B T *inputs"],
        lora_params: Mapping[str, LoraWeights],
        adapter_mask: Float[Array, "B S"] | None = None,
        sharding: Sharding = UNSHARDED,
    ) -> Float[Array, "B T *outputs"]:
        """Applies the layer and its own of the `lora_params`, if any.

        `adapter_mask` says how much of each of the S adapters a row of the batch gets (1 or 0).

        Several adapters act as one of rank S R whose foreign parts are masked row by row: two matmuls, no gather.
        """
        weight = sharding.gather_for_matmul(self.layout, self.weight[...])
        inputs = len(self.layout.split("->")[0])
        outputs = weight.shape[inputs:]
        # As matrices: XLA on a CPU would copy a weight to sum over two axes of it.
        weight = weight.reshape(math.prod(weight.shape[:inputs]), -1)
        x = x.reshape(*x.shape[:2], -1)
        if self.scale is None:
            y = jnp.einsum("BTX,XY->BTY", x, weight)
        else:
            y = einsum_f32("BTX,XY->BTY", x, weight.astype(x.dtype))
            y = (y * self.scale[...].reshape(1, 1, -1)).astype(x.dtype)
        if (update := lora_params.get(self.name)) is not None:
            gain = update.scale[None] if adapter_mask is None else update.scale[None] * adapter_mask
            rank = update.a.shape[-2:]
            y += low_rank(x, update.a.reshape(-1, *rank), update.b.reshape(*rank, -1), gain)
        if self.bias is not None:
            y += self.bias[...].reshape(1, 1, -1)
        y = y.reshape(*y.shape[:2], *outputs)
        return checkpoint_name(y, self.name)


class RMSNorm(nnx.Module):
    """x / rms(x) * weight, with the statistics in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, name: str, epsilon: float, init: ParamInit):
        self.epsilon = epsilon
        self.weight = nnx.Param(init(f"{name}.weight", "D"))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.weight[...].reshape(1, 1, -1)
