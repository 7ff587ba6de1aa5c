"""The adapter as its own pytree: fresh, stacked, and in the form the model takes."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from em_jax.base.errors import UserError
from em_jax.lora.config import LoraConfig
from em_jax.model.config import TransformerConfig
from em_jax.model.layout import Layout
from em_jax.model.linear import LoraWeights
from em_jax.model.parameters import Weight, weights_of
from em_jax.model.sharding import Sharding

TOGETHER = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""The targets that read the same input."""


class LoraParams(NamedTuple):
    """A [L, inputs, S, R] and B [L, S, R, outputs] of one target in all layers, float32, in the weight's letters."""

    a: Float[Array, "L *inputs S R"]
    b: Float[Array, "L S R *outputs"]

    def pad_ranks(self, rank: int) -> "LoraParams":
        """The same update at a larger rank: the added ranks are zero in A and B."""
        padding = (0, rank - self.a.shape[-1])
        none = (0, 0)
        a = jnp.pad(self.a, [none] * (self.a.ndim - 1) + [padding])
        return LoraParams(a, jnp.pad(self.b, [none, none, padding] + [none] * (self.b.ndim - 3)))


class Adapter(NamedTuple):
    """S adapters (one, or a stack) by target. `factors` is trained; `scale`, float32[L, S], is not.

    A layer without an update, and the ranks that an adapter lacks beside a larger one, are zeros in both A and B. Where
    both are zero, both gradients are zero, so they stay zero in training.
    """

    factors: Mapping[str, LoraParams]
    scale: Mapping[str, Float[Array, "L S"]]

    def lora_params(self) -> dict[str, LoraWeights]:
        """The adapters as the model's forward pass takes them."""
        return {target: LoraWeights(a, b, self.scale[target]) for target, (a, b) in self.factors.items()}


def joined(adapter: Adapter, config: TransformerConfig, dtype: Any, *, whole: bool) -> dict[str, LoraWeights]:
    """The adapters in `dtype`, the A's of layers that read the same input side by side, in the place of the first one.

    `apply_together` would do that for every token; the others' A then have no rank. With `whole`, which is for S = 1,
    every B has all their ranks, zero where a rank is another's, and those of a Linear's parts are one B, times their
    scales: fewer, larger products, for a device where a launch costs more than the zeros.
    """
    joint = adapter.lora_params()
    for names in TOGETHER:
        if not (present := [name for name in names if name in joint]):
            continue
        a = jnp.concatenate([joint[name].a for name in present], -1)
        start = 0
        for name in present:
            own, b, scale = joint[name]
            if whole:
                b, scale = jnp.einsum("LSR...,LS->LSR...", b, scale), jnp.ones_like(scale)
                ranks = (start, a.shape[-1] - start - own.shape[-1])
                b = jnp.pad(b, [(0, 0), (0, 0), ranks] + [(0, 0)] * (b.ndim - 3))
            joint[name] = LoraWeights(a if name == present[0] else a[..., :0], b, scale)
            start += own.shape[-1]
    for weight in weights_of(config, stacked=True):
        parts = weight.layout.parts if whole and weight.layout.inputs else ()
        updates = {part: joint.pop(part.name, None) for part in parts}
        if (first := next(filter(None, updates.values()), None)) is None:
            continue
        blocks = []
        for part, lora in updates.items():
            shape = *first.b.shape[:3], *Layout(weight.layout.outputs, parts=(part,)).shape(config.dims)
            blocks.append(lora.b.reshape(shape) if lora else jnp.zeros(shape))
        joined_b = jnp.concatenate(blocks, 3 + weight.layout.outputs.index("J"))
        joint[_target(weight)] = LoraWeights(first.a, joined_b, first.scale)
    return {target: LoraWeights(a.astype(dtype), b.astype(dtype), scale) for target, (a, b, scale) in joint.items()}


def _target(weight: Weight) -> str:
    """The name in a block of a weight of all layers: "self_attn.qkv_proj"."""
    return weight.name.removeprefix("model.layers.*.").removesuffix(".weight")


@functools.cache
def layouts(config: TransformerConfig) -> dict[str, Layout]:
    """Every weight that an adapter may target, with one layer's layout: "self_attn.q_proj" -> "D->NH"."""
    found: dict[str, Layout] = {}
    for weight in weights_of(config, stacked=True):
        if inputs := weight.layout.inputs:
            parts = [(part.name, part.outputs) for part in weight.layout.parts]
            parts = parts or [(_target(weight), weight.layout.outputs)]
            found |= {name: Layout(f"{inputs}->{outputs}") for name, outputs in parts}
    # A fresh adapter's numbers depend on this order.
    return dict(sorted(found.items(), key=lambda each: each[0].rpartition(".")[2]))


def ranks(config: TransformerConfig, lora: LoraConfig) -> dict[str, list[tuple[int, float]]]:
    """Target -> (rank, scale) of every layer; (0, 0.0) where a layer gets no update.

    Targets and patterns match as in PEFT: a name or its dotted ending, of patterns a regular expression for it, the
    first of which decides. Raises UserError for a target, layer or rank that the model cannot have.
    """
    layers = range(config.num_hidden_layers)
    names = {target: [f"model.layers.{layer}.{target}" for layer in layers] for target in layouts(config)}
    endings = {name[i + 1 :] for each in names.values() for name in each for i, c in enumerate(name) if c == "."}
    unknown = [target for target in lora.targets if target not in endings]
    if unknown or not lora.targets:
        known = ", ".join(target.rsplit(".", 1)[1] for target in names)
        raise UserError(f"lora.targets: found {unknown or 'none'}, expected some of {known}")
    if not set(lora.layers_to_transform) <= set(layers):
        raise UserError(f"lora.layers_to_transform: found {list(lora.layers_to_transform)}, expected 0 to {layers[-1]}")

    def rank_and_scale(layer: int, name: str) -> tuple[int, float]:
        if layer not in (lora.layers_to_transform or layers) or not f".{name}".endswith(targets):
            return 0, 0.0
        rank = int(_match(lora.rank_pattern, name, lora.rank))
        alpha = float(_match(lora.alpha_pattern, name, lora.alpha))
        if rank < 1:
            raise UserError(f"lora: rank of {name} must be at least 1, found {rank}")
        return rank, alpha / (rank**0.5 if lora.rslora else rank)

    targets = tuple(f".{target}" for target in lora.targets)
    found = {target: [rank_and_scale(layer, name) for layer, name in enumerate(each)] for target, each in names.items()}
    return {target: per_layer for target, per_layer in found.items() if any(rank for rank, _ in per_layer)}


def init_adapter(config: TransformerConfig, lora: LoraConfig, key: jax.Array) -> Adapter:
    """A fresh adapter: A uniform in +-1/sqrt(inputs) (PEFT's Kaiming uniform), B zero; so it changes nothing yet."""
    factors = {}
    per_target = ranks(config, lora)
    for i, (target, per_layer) in enumerate(per_target.items()):
        rank = np.array([rank for rank, _ in per_layer])
        a, b = zero_params(config, target, rank.max())
        bound = math.prod(a.shape[1:-2]) ** -0.5
        a = jax.random.uniform(jax.random.fold_in(key, i), a.shape, jnp.float32, -bound, bound)
        is_used = np.arange(rank.max()) < np.expand_dims(rank, tuple(range(1, a.ndim)))
        factors[target] = LoraParams(a * is_used.astype(np.float32), b)
    return Adapter(factors, scales_of(per_target))


def scales_of(per_target: Mapping[str, list[tuple[int, float]]]) -> dict[str, Float[Array, "L 1"]]:
    """The scales of one adapter, given the `ranks` of its layers."""
    return {target: jnp.array([[scale] for _, scale in layers], jnp.float32) for target, layers in per_target.items()}


def stack_adapters(config: TransformerConfig, adapters: Sequence[Adapter]) -> Adapter:
    """Several adapters as one: S grows, ranks are padded with zeros, a target that one lacks is zero for it."""
    factors, scale = {}, {}
    for target, layout in layouts(config).items():
        zero = zero_params(config, target, 0)
        params = [adapter.factors.get(target, zero) for adapter in adapters]
        rank = max((a.shape[-1] for a, _ in params), default=0)
        if not rank:
            continue
        a, b = zip(*(each.pad_ranks(rank) for each in params))
        factors[target] = LoraParams(jnp.concatenate(a, 1 + len(layout.inputs)), jnp.concatenate(b, 1))
        scales = [adapter.scale.get(target, jnp.zeros((config.num_hidden_layers, 1))) for adapter in adapters]
        scale[target] = jnp.concatenate(scales, 1)
    return Adapter(factors, scale)


def zero_params(config: TransformerConfig, target: str, rank: int) -> LoraParams:
    """An update of one target that changes nothing, S = 1."""
    inputs, outputs = layout_shapes(config, target)
    layers = config.num_hidden_layers
    return LoraParams(
        jnp.zeros((layers, *inputs, 1, rank), jnp.float32), jnp.zeros((layers, 1, rank, *outputs), jnp.float32)
    )


def shardings_of(config: TransformerConfig, factors: Mapping[str, Any], sharding: Sharding) -> dict[str, LoraParams]:
    """Where every A and B lies: split as the axes of its matrix are, and the rank over what they leave."""
    return {
        target: LoraParams(
            sharding.factor(f"L{layouts(config)[target].inputs}SR", params.a.shape),
            sharding.factor(f"LSR{layouts(config)[target].outputs}", params.b.shape),
        )
        for target, params in factors.items()
    }


def layout_shapes(config: TransformerConfig, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input and output dimensions of a target's weight."""
    layout = layouts(config)[target]
    shape, inputs = layout.shape(config.dims), len(layout.inputs)
    return shape[:inputs], shape[inputs:]


def _match(patterns: Mapping[str, float], name: str, default: float) -> float:
    matches = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name))
    return next(matches, default)
