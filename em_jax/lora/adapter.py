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
from em_jax.model.parameters import weights_of
from em_jax.model.sharding import Sharding


class LoraParams(NamedTuple):
    """A [L, inputs, S, R] and B [L, S, R, outputs] of one target in all layers, float32, in the weight's letters."""

    a: Float[Array, "L *inputs S R"]
    b: Float[Array, "L S R *outputs"]


class Adapter(NamedTuple):
    """S adapters (one, or a stack) by target. `factors` is trained; `scale`, float32[L, S], is not.

    A layer without an update, and the ranks that pad an adapter to the largest one's, are zeros in both A and B. Where
    both are zero, both gradients are zero, so they stay zero in training.
    """

    factors: Mapping[str, LoraParams]
    scale: Mapping[str, Float[Array, "L S"]]

    def lora_params(self) -> dict[str, LoraWeights]:
        """The adapters as the model's forward pass takes them."""
        return {target: LoraWeights(a, b, self.scale[target]) for target, (a, b) in self.factors.items()}


def adapted(adapter: Adapter | None, adapter_mask: Float[Array, "B S"] | None = None) -> dict[str, Any]:
    """The arguments by which a Transformer's forward pass takes adapters, or none."""
    return {"lora_params": adapter.lora_params() if adapter else None, "adapter_mask": adapter_mask}


@functools.cache
def layouts(config: TransformerConfig) -> dict[str, Layout]:
    """Every weight that an adapter may target, with one layer's layout: "self_attn.q_proj" -> "D->NH"."""
    found = {
        name: Layout(f"{weight.layout.inputs}->{outputs}")
        for weight in weights_of(config, stacked=True)
        if weight.layout.inputs
        for name, outputs in weight.layout.targets(weight.in_layer).items()
    }
    # The order decides each target's random key.
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
        a = [jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, rank - a.shape[-1])]) for a, _ in params]
        b = [jnp.pad(b, [(0, 0), (0, 0), (0, rank - b.shape[2])] + [(0, 0)] * (b.ndim - 3)) for _, b in params]
        factors[target] = LoraParams(jnp.concatenate(a, 1 + len(layout.inputs)), jnp.concatenate(b, 1))
        scales = [adapter.scale.get(target, jnp.zeros((config.num_hidden_layers, 1))) for adapter in adapters]
        scale[target] = jnp.concatenate(scales, 1)
    return Adapter(factors, scale)


def zero_params(config: TransformerConfig, target: str, rank: int) -> LoraParams:
    """An update of one target that changes nothing, S = 1."""
    inputs, outputs = layout_shapes(config, target)
    a, b = (config.num_hidden_layers, *inputs, 1, rank), (config.num_hidden_layers, 1, rank, *outputs)
    return LoraParams(jnp.zeros(a, jnp.float32), jnp.zeros(b, jnp.float32))


def shardings_of(config: TransformerConfig, factors: Mapping[str, Any], sharding: Sharding) -> dict[str, LoraParams]:
    """The sharding of every A and B: that of its weight's axes, and the rank over the mesh axes that remain."""
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
