"""The linear layer, whole or in eight bits, with the low-rank update it may carry; and RMSNorm."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int8

from em_jax.model.kernels.cpu import low_rank
from em_jax.model.layout import Layout
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


class Linear(nnx.Module):
    """y = x W + b, with W stored in the axes of its layout: "D->NH" is a [D, N, H] array. `apply_together` applies it.

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

    def project(self, x: Float[Array, "B T X"], sharding: Sharding) -> Float[Array, "B T Y"]:
        """x W, all inputs and all outputs as one axis: XLA:CPU would copy a weight to sum over two of its axes."""
        weight = sharding.gather_for_matmul(self.layout.letters, self.weight[...]).reshape(x.shape[-1], -1)
        y = jnp.einsum("BTX,XY->BTY", x, weight.astype(x.dtype))
        # Scaled in float32, of results that are written in x's dtype: an accelerator would write float32 ones out.
        return y if self.scale is None else (y * self.scale[...].reshape(1, 1, -1)).astype(x.dtype)


def apply_together(
    layers: Sequence[Linear],
    x: Float[Array, "B T *inputs"],
    lora_params: Mapping[str, LoraWeights],
    adapter_mask: Float[Array, "B S"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> list[Float[Array, "B T *outputs"]]:
    """The outputs of layers that read the same `x`, with the adapters that `lora_params` has under their names.

    `adapter_mask` is 1 where a row of the batch uses one of the S adapters, else 0. Several adapters act as one of rank
    S R of which each row uses its own part: two matmuls, no gather. The first matmul is one for all the layers.
    """
    x = x.reshape(*x.shape[:2], -1)
    updated = [layer for layer in layers if layer.name in lora_params]
    updates: dict[str, Array] = {}
    if updated:
        given = [lora_params[layer.name] for layer in updated]
        a = tuple(lora.a.reshape(x.shape[-1], *lora.a.shape[-2:]) for lora in given)
        b = tuple(lora.b.reshape(*lora.b.shape[:2], -1) for lora in given)
        gain = tuple(lora.scale[None] * (1 if adapter_mask is None else adapter_mask) for lora in given)
        letters = tuple(layer.layout.inputs[0] + layer.layout.outputs[0] for layer in updated)
        updates = dict(zip([layer.name for layer in updated], low_rank(x, a, b, gain, letters, sharding)))
    outputs = []
    for layer in layers:
        y = layer.project(x, sharding)
        if layer.name in updates:
            y += updates[layer.name]
        if layer.bias is not None:
            y += layer.bias[...].reshape(1, 1, -1)
        shape = layer.weight.shape[len(layer.layout.inputs) :]
        outputs.append(checkpoint_name(y.reshape(*y.shape[:2], *shape), layer.name))
    return outputs


class RMSNorm(nnx.Module):
    """x / rms(x) * weight, with the statistics in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, name: str, epsilon: float, init: ParamInit, layout: str = "D"):
        self.epsilon = epsilon
        self.weight = nnx.Param(init(f"{name}.weight", Layout(layout)))

    def __call__(self, x: Float[Array, "B T *axes"]) -> Float[Array, "B T *axes"]:
        """Normalises the last axis: the width, or that of each head."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * self.weight[...].reshape((1,) * (x.ndim - 1) + (-1,))
