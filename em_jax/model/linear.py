"""The linear layer, whole or in eight bits, with the low-rank update it may carry; and RMSNorm."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int8

from em_jax.model.kernels.few_rows import matmul
from em_jax.model.kernels.low_rank import low_rank_updates
from em_jax.model.layout import Layout, Part
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

    Where the layout has parts, W is several weights of the checkpoint side by side: one matmul, an output for each.
    A quantised W is never expanded: its int8 values enter the matmul and the outputs are scaled.
    """

    def __init__(self, name: str, layout: str, init: ParamInit, *, parts: tuple[Part, ...] = (), bias: bool = False):
        self.name = name
        self.layout = Layout(layout, parts=parts)
        weight = init(f"{name}.weight", self.layout)
        values, scale = weight if isinstance(weight, Quantized) else (weight, None)
        self.weight = nnx.Param(values)
        self.scale = None if scale is None else nnx.Param(scale)
        self.bias = nnx.Param(init(f"{name}.bias", self.layout.scale)) if bias else None

    def outputs(self, x: Float[Array, "B T X"], updates: Mapping[str, Array], sharding: Sharding) -> list[Array]:
        """x W + b and the updates [B, T, Y] by target, in the letters of each part or of the one weight."""
        # All inputs and all outputs as one axis: XLA:CPU would copy a weight to sum over two of its axes.
        weight = sharding.gather_for_matmul(self.layout.letters, self.weight[...]).reshape(x.shape[-1], -1)
        y = matmul(x, weight, sharding)
        if self.scale is not None:
            # Scaled in float32, but the matmul's output is in x's dtype: an accelerator would write float32 out.
            y = (y * self.scale[...].reshape(1, 1, -1)).astype(x.dtype)
        if self.name in updates:
            y += updates[self.name]
        if self.bias is not None:
            y += self.bias[...].reshape(1, 1, -1)
        y = y.reshape(*y.shape[:2], *self.weight.shape[len(self.layout.inputs) :])
        if not self.layout.parts:
            return [checkpoint_name(y, self.name)]
        ends = list(itertools.accumulate(part.size for part in self.layout.parts))[:-1]
        outputs = []
        for part, output in zip(self.layout.parts, jnp.split(y, ends, axis=2 + self.layout.outputs.index("J"))):
            output = output.reshape(*y.shape[:2], -1, *y.shape[4:])  # KJH -> NH or KH
            if part.name in updates:
                # Joint updates are as wide as the widest.
                output += updates[part.name][:, :, : math.prod(output.shape[2:])].reshape(output.shape)
            outputs.append(checkpoint_name(output, part.name))
        return outputs


def apply_together(
    layers: Sequence[Linear],
    x: Float[Array, "B T *inputs"],
    lora_params: Mapping[str, LoraWeights],
    adapter_mask: Float[Array, "B S"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> list[Float[Array, "B T *outputs"]]:
    """x W + b + sum over S of mask_S scale_S (x A_S) B_S for layers that read the same `x`, each in its own letters.

    Of `lora_params` those of the layers' weights apply. `adapter_mask` is 1 where a row of the batch uses one of the
    S adapters, else 0. Several adapters act as one of rank S R of which each row uses its own part: two matmuls, no
    gather. The first matmul is one for all the layers.
    """
    x = x.reshape(*x.shape[:2], -1)
    letters: dict[str, str] = {}
    for layer in layers:
        targets = layer.layout.targets(layer.name)
        letters |= {name: layer.layout.inputs[0] + outputs[0] for name, outputs in targets.items()}
    updates = low_rank_updates(x, letters, lora_params, adapter_mask, sharding)
    return [output for layer in layers for output in layer.outputs(x, updates, sharding)]


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
