"""Picks hidden states by position, with a gradient that needs no scatter."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def gather_positions(
    hidden: Float[Array, "B T D"], positions: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> Float[Array, "B M D"]:
    """hidden[b, positions[b, m]]; no gradient where a weight is 0, and elsewhere no position twice in a row.

    The gradient of the plain gather is a scatter, which XLA:CPU runs element by element and a TPU row by row; this one
    gathers too.
    """
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def _forward(hidden: Array, positions: Array, weights: Array) -> tuple[Array, Array]:
    """The m of each position, M where no m has it, is kept for the backward pass."""
    found = (positions[:, None] == jnp.arange(hidden.shape[1])[None, :, None]) & (weights[:, None] != 0)
    inverse = jnp.where(jnp.any(found, axis=2), jnp.argmax(found, axis=2), positions.shape[1])
    return gather_positions(hidden, positions, weights), inverse


def _backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    padded = jnp.pad(gradient, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(padded, inverse[:, :, None], axis=1), None, None


gather_positions.defvjp(_forward, _backward)
