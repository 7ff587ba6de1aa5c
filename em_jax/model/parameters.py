"""Every weight of the architecture by its name and layout, and a model of random ones."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from em_jax.model.config import Qwen2Config
from em_jax.model.qwen2 import Qwen2
from em_jax.model.sharding import UNSHARDED, Sharding


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight's name in the checkpoint ("*" for all layers at once) and its layout in shape letters."""

    name: str
    layout: str

    def shape(self, config: Qwen2Config) -> tuple[int, ...]:
        """The shape of our array, without the leading L of a stack."""
        return tuple(config.dims[letter] for letter in self.layout.replace("->", ""))

    def stored_shape(self, config: Qwen2Config) -> tuple[int, ...]:
        """The shape in the checkpoint: [outputs, inputs] for a linear layer, else as ours, letters flattened."""
        if "->" not in self.layout:
            return self.shape(config) if self.layout == "VD" else (math.prod(self.shape(config)),)
        inputs, outputs = self.layout.split("->")
        return tuple(math.prod(config.dims[letter] for letter in group) for group in (outputs, inputs))

    def names(self, config: Qwen2Config) -> list[str]:
        """The checkpoint's tensors behind this weight: one, or one per layer."""
        if "*" not in self.name:
            return [self.name]
        return [self.name.replace("*", str(i)) for i in range(config.num_hidden_layers)]


def weights_of(config: Qwen2Config, *, stacked: bool) -> list[Weight]:
    """Every weight of the architecture, in the order of the model's leaves."""
    return jax.tree.leaves(Qwen2(config, Weight, stacked=stacked))


def random_model(
    config: Qwen2Config,
    key: jax.Array,
    *,
    dtype: Any = jnp.float32,
    stacked: bool = False,
    sharding: Sharding = UNSHARDED,
    scale: float = 0.02,
) -> Qwen2:
    """A model with normal weights of standard deviation `scale`, ones in the norms and zero biases."""

    def init(name: str, layout: str) -> jax.Array:
        weight = Weight(name, layout)
        layers, shape = leading(weight, config), weight.shape(config)
        placed = sharding.weight(layers[0] + layout, layers[1] + shape, name)
        if name.endswith(("norm.weight", "bias")):
            fill = functools.partial(jnp.full, layers[1] + shape, float(name.endswith("weight")), dtype)
            return jax.jit(fill, out_shardings=placed)()
        place = int.from_bytes(name.encode(), "little") % (2**31 - 1)
        draw = lambda: scale * jax.random.normal(jax.random.fold_in(key, place), layers[1] + shape, dtype)  # noqa: E731
        return jax.jit(draw, out_shardings=placed)()

    return Qwen2(config, init, stacked=stacked)


def leading(weight: Weight, config: Qwen2Config) -> tuple[str, tuple[int, ...]]:
    return ("L", (config.num_hidden_layers,)) if "*" in weight.name else ("", ())
