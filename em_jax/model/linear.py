"""The linear layer, whole or in eight bits, with the low-rank update it may carry; and RMSNorm."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int8

from em_jax.model.kernels import cpu
from em_jax.model.layout import Layout, einsum_f32
from em_jax.model.remat import LOW
from em_jax.model.sharding import UNSHARDED, Sharding


class Quantized(NamedTuple):
    """A weight in eight bits, symmetric about zero: the weight is values * scale, within half of `scale`."""

    values: Int8[Array, "*weight"]
    scale: Float[Array, "*outputs"]


ParamInit = Callable[[str, Layout], Array | Quantized]
"""Returns the array of a weight, given its name in the checkpoint and its layout; a Linear's may be `Quantized`."""


def quantize(layout: Layout, weight: Float[Array, "*weight"]) -> Quantized:
    """Rounds one layer's weight to 255 steps, the largest of each output at +-127; an output of zeros has scale 0."""
    inputs = tuple(range(len(layout.inputs)))
    wide = weight.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=inputs) / 127
    steps = wide / jnp.expand_dims(jnp.where(scale == 0, 1, scale), inputs)
    return Quantized(jnp.round(steps).astype(jnp.int8), scale)


class LoraWeights(NamedTuple):
    """The update of one weight by S adapters of rank R at once: x -> sum over S of scale_S (x A_S) B_S.

    A is [inputs, S, R] and B [S, R, outputs] in the weight's own input and output letters, float32; scale is [S].
    """

    a: Float[Array, "*inputs S R"]
    b: Float[Array, "S R *outputs"]
    scale: Float[Array, "S"]


def low_rank(
    x: Float[Array, "B T X"],
    a: Float[Array, "X S R"],
    b: Float[Array, "S R Y"],
    gain: Float[Array, "#B S"],
    letters: str = "XY",
    sharding: Sharding = UNSHARDED,
) -> Float[Array, "B T Y"]:
    """Sum over S of gain_S (x A_S) B_S, for a weight of X inputs and Y outputs: the plain formula.

    `letters` are those that stand for X and Y in the sharding table.
    """
    a = sharding.gather_for_matmul(f"{letters[0]}SR", a.astype(x.dtype))
    b = sharding.gather_for_matmul(f"SR{letters[1]}", b.astype(x.dtype))
    low = einsum_f32("BTX,XSR->BTSR", x, a) * gain[:, None, :, None]
    return einsum_f32("BTSR,SRY->BTY", checkpoint_name(low.astype(x.dtype), LOW), b).astype(x.dtype)


class Linear(nnx.Module):
    """y = x W + b, with W stored in the axes of its layout: "D->NH" is a [D, N, H] array.

    A quantised W is never expanded: its int8 values enter the matmul and the outputs are scaled.
    """

    def __init__(self, name: str, layout: str, init: ParamInit, *, bias: bool = False):
        self.name = name
        self.layout = Layout(layout)
        weight = init(f"{name}.weight", self.layout)
        values, scale = weight if isinstance(weight, Quantized) else (weight, None)
        self.weight = nnx.Param(values)
        self.scale = None if scale is None else nnx.Param(scale)
        self.bias = nnx.Param(init(f"{name}.bias", Layout(self.layout.outputs))) if bias else None

    def __call__(
        self,
        x: Float[Array, "B T *inputs"],
        lora_params: Mapping[str, LoraWeights],
        adapter_mask: Float[Array, "B S"] | None = None,
        sharding: Sharding = UNSHARDED,
    ) -> Float[Array, "B T *outputs"]:
        """Applies the layer and the adapters that `lora_params` has under its name, if any.

        `adapter_mask` is 1 where a row of the batch uses one of the S adapters, else 0. Several adapters act as one of
        rank S R of which each row uses its own part: two matmuls, no gather.
        """
        weight = sharding.gather_for_matmul(self.layout.letters, self.weight[...])
        inputs = len(self.layout.inputs)
        outputs = weight.shape[inputs:]
        # As matrices: XLA:CPU would copy a weight to sum over two of its axes.
        weight = weight.reshape(math.prod(weight.shape[:inputs]), -1)
        x = x.reshape(*x.shape[:2], -1)
        if self.scale is None:
            y = jnp.einsum("BTX,XY->BTY", x, weight)
        else:
            y = einsum_f32("BTX,XY->BTY", x, weight.astype(x.dtype))
            y = (y * self.scale[...].reshape(1, 1, -1)).astype(x.dtype)
        if (lora := lora_params.get(self.name)) is not None:
            gain = lora.scale[None] if adapter_mask is None else lora.scale[None] * adapter_mask
            rank = lora.a.shape[-2:]
            update = cpu.low_rank if cpu.serves_low_rank(x.dtype, sharding) else low_rank
            letters = self.layout.inputs[0] + self.layout.outputs[0]
            y += update(x, lora.a.reshape(-1, *rank), lora.b.reshape(*rank, -1), gain, letters, sharding)
        if self.bias is not None:
            y += self.bias[...].reshape(1, 1, -1)
        return checkpoint_name(y.reshape(*y.shape[:2], *outputs), self.name)


class RMSNorm(nnx.Module):
    """x / rms(x) * weight, with the statistics in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, name: str, epsilon: float, init: ParamInit):
        self.epsilon = epsilon
        self.weight = nnx.Param(init(f"{name}.weight", Layout("D")))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.weight[...].reshape(1, 1, -1)
