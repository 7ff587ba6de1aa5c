"""Every weight of the architecture by its name and layout, and a model of random ones."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from em_jax.model.config import TransformerConfig
from em_jax.model.layout import Layout
from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight's name in the checkpoint ("*" stands for the number of each layer) and its layout."""

    name: str
    layout: Layout

    def stored_shape(self, config: TransformerConfig) -> tuple[int, ...]:
        """The shape of each tensor in the checkpoint: [outputs, inputs] for a linear layer, letters flattened."""
        groups = self.layout.outputs if self.layout.text == "VD" else (self.layout.outputs, self.layout.inputs)
        return tuple(math.prod(config.dims[letter] for letter in group) for group in groups if group)

    def names(self, config: TransformerConfig) -> list[str]:
        """The checkpoint's tensors that make up this weight: one, or one for each layer."""
        if not self.layout.stacked:
            return [self.name]
        return [self.name.replace("*", str(i)) for i in range(config.num_hidden_layers)]


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
