"""The adapter as its own pytree: made, stacked, and handed to the model."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from em_jax.base.errors import UserError
from em_jax.lora.config import LoraConfig
from em_jax.model.config import Qwen2Config
from em_jax.model.linear import LoraWeights
from em_jax.model.parameters import weights_of


class LoraParams(NamedTuple):
    """A [L, inputs, S, R] and B [L, S, R, outputs] of one target in all layers, float32, in the weight's letters."""

    a: Float[Array, "L *inputs S R"]
    b: Float[Array, "L S R *outputs"]


class Adapter(NamedTuple):
    """S adapters (one, or a stack) by target. `factors` is what is trained; `scale`, float32[L, S], is not.

    A layer an adapter leaves alone, and the ranks it lacks beside a larger one, are zeros in both A and B: each gets
    its gradient through the other, so they stay zero under training.
    """

    factors: Mapping[str, LoraParams]
    scale: Mapping[str, Float[Array, "L S"]]

    def lora_params(self) -> dict[str, LoraWeights]:
        """What the model's forward pass takes."""
        return {target: LoraWeights(*factors, self.scale[target]) for target, factors in self.factors.items()}


def layouts(config: Qwen2Config) -> dict[str, str]:
    """Every weight an adapter may target: "self_attn.q_proj" -> "D->NH"."""
    return {
        weight.name.removeprefix("model.layers.*.").removesuffix(".weight"): weight.layout
        for weight in weights_of(config, stacked=True)
        if "->" in weight.layout and weight.name.endswith(".weight")
    }


def ranks(config: Qwen2Config, lora: LoraConfig) -> dict[str, list[tuple[int, float]]]:
    """Target -> (rank, scale) of every layer, (0, 0.0) where a layer is left alone.

    Patterns are matched as PEFT does: a name or its dotted ending, as a regular expression, the first that fits.
    Raises UserError for a target, layer or rank that cannot be.
    """
    known = layouts(config)
    by_ending = {target.rsplit(".", 1)[1]: target for target in known}
    unknown = [target for target in lora.targets if target not in by_ending]
    if unknown or not lora.targets:
        raise UserError(f"lora.targets: found {unknown or 'none'}, expected some of {', '.join(by_ending)}")
    layers = config.num_hidden_layers
    if any(not 0 <= layer < layers for layer in lora.layers_to_transform):
        raise UserError(f"lora.layers_to_transform: found {list(lora.layers_to_transform)}, expected 0 to {layers - 1}")
    chosen = set(lora.layers_to_transform) or set(range(layers))
    found: dict[str, list[tuple[int, float]]] = {}
    for target in (by_ending[ending] for ending in by_ending if ending in lora.targets):
        found[target] = []
        for layer in range(layers):
            name = f"model.layers.{layer}.{target}"
            rank = int(_by_pattern(lora.rank_pattern, name, lora.rank)) if layer in chosen else 0
            alpha = float(_by_pattern(lora.alpha_pattern, name, lora.alpha))
            if layer in chosen and rank < 1:
                raise UserError(f"lora: rank of {name} must be at least 1, found {rank}")
            found[target].append((rank, alpha / (rank**0.5 if lora.rslora else rank) if rank else 0.0))
    return found


def init_adapter(config: Qwen2Config, lora: LoraConfig, key: jax.Array) -> Adapter:
    """A fresh adapter: A uniform in +-1/sqrt(inputs) (PEFT's Kaiming uniform), B zero; so it changes nothing yet."""
    factors, scale = {}, {}
    for i, (target, per_layer) in enumerate(ranks(config, lora).items()):
        inputs, outputs = layout_shapes(config, target)
        widest = max(rank for rank, _ in per_layer)
        shape = (config.num_hidden_layers, *inputs, 1, widest)
        bound = float(np.prod(inputs)) ** -0.5
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound)
        used = np.arange(widest) < np.array([rank for rank, _ in per_layer])[:, None]
        a *= used.reshape(len(per_layer), *(1 for _ in inputs), 1, widest).astype(np.float32)
        b = jnp.zeros((config.num_hidden_layers, 1, widest, *outputs), jnp.float32)
        factors[target] = LoraParams(a, b)
        scale[target] = jnp.array([[value] for _, value in per_layer], jnp.float32)
    return Adapter(factors, scale)


def stack_adapters(config: Qwen2Config, adapters: Sequence[Adapter]) -> Adapter:
    """Several adapters as one: S grows, ranks are padded with zeros, a target that one lacks is zero for it."""
    factors, scale = {}, {}
    for target in layouts(config):
        holders = [adapter for adapter in adapters if target in adapter.factors]
        if not holders:
            continue
        inputs, outputs = layout_shapes(config, target)
        widest = max(adapter.factors[target].a.shape[-1] for adapter in holders)
        layers = config.num_hidden_layers
        parts_a, parts_b, parts_scale = [], [], []
        for adapter in adapters:
            if target not in adapter.factors:
                parts_a.append(jnp.zeros((layers, *inputs, 1, widest), jnp.float32))
                parts_b.append(jnp.zeros((layers, 1, widest, *outputs), jnp.float32))
                parts_scale.append(jnp.zeros((layers, 1), jnp.float32))
                continue
            a, b = adapter.factors[target]
            more = widest - a.shape[-1]
            parts_a.append(jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)]))
            parts_b.append(jnp.pad(b, [(0, 0), (0, 0), (0, more)] + [(0, 0)] * len(outputs)))
            parts_scale.append(adapter.scale[target])
        axis = 1 + len(inputs)
        factors[target] = LoraParams(jnp.concatenate(parts_a, axis), jnp.concatenate(parts_b, 1))
        scale[target] = jnp.concatenate(parts_scale, 1)
    return Adapter(factors, scale)


def layout_shapes(config: Qwen2Config, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input and output dimensions of a target's weight."""
    inputs, outputs = layouts(config)[target].split("->")
    return tuple(config.dims[letter] for letter in inputs), tuple(config.dims[letter] for letter in outputs)


def _by_pattern(patterns: Mapping[str, float], name: str, otherwise: float) -> float:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return otherwise
