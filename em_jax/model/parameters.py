"""Every weight of the architecture by its name and layout, and a model of random ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from em_jax.model.config import TransformerConfig
from em_jax.model.layout import Layout
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Weight:
    """An array of the model: its name ("*" stands for the number of each layer) and its layout."""

    name: str
    layout: Layout

    @property
    def in_layer(self) -> str:
        """The name in a layer of a Linear's weight: "self_attn.qkv_proj"."""
        return self.name.removeprefix("model.layers.*.").removesuffix(".weight")


def weights_of(config: TransformerConfig, *, stacked: bool) -> list[Weight]:
    """Every weight of the architecture, in the order of the model's leaves."""
    return jax.tree.leaves(Transformer(config, Weight, stacked=stacked))


def random_model(
    config: TransformerConfig,
    key: jax.Array,
    *,
    dtype: Any = jnp.float32,
    stacked: bool = False,
    sharding: Sharding = UNSHARDED,
    scale: float = 0.02,
) -> Transformer:
    """A model with normal weights of standard deviation `scale`, ones in the norms and zero biases."""

    def init(name: str, layout: Layout) -> jax.Array:
        shape = layout.shape(config.dims)
        seed = int.from_bytes(name.encode(), "little") % (2**31 - 1)

        def create() -> jax.Array:
            if name.endswith(("norm.weight", "bias")):
                return jnp.full(shape, float(name.endswith("weight")), dtype)
            return scale * jax.random.normal(jax.random.fold_in(key, seed), shape, dtype)

        return jax.jit(create, out_shardings=sharding.weight(layout.letters, shape, name))()

    return Transformer(config, init, stacked=stacked)
