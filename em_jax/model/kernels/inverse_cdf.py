"""A draw by inverse CDF, in blocks of the vocabulary."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128
"""Tokens of the vocabulary in a block."""


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first token of each row whose cumulative weight exceeds `uniform`, in [0, 1), times the row's sum.

    Weights are summed by block, then cumulated over blocks and within one: a cumulative sum over V is slow on a CPU and
    several passes over V on a GPU. A token without weight is never drawn.
    """
    batch, vocabulary = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocabulary % BLOCK))).reshape(batch, -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    block_ends = jnp.cumsum(sums, axis=-1)
    target = uniform * block_ends[:, -1]
    block = _first_above(sums, block_ends, target)
    before = jnp.take_along_axis(block_ends, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0]
    target -= jnp.where(block > 0, before, 0.0)
    own = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    # A row of no finite number has no weight at all.
    return jnp.minimum(block * BLOCK + _first_above(own, jnp.cumsum(own, axis=-1), target), vocabulary - 1)


def _first_above(weights: Array, ends: Array, target: Array) -> Array:
    """The first of each row with weight whose end exceeds the target, else the last with weight: sums are rounded."""
    found = (weights > 0) & (ends > target[:, None])
    last = weights.shape[-1] - 1 - jnp.argmax(jnp.flip(weights > 0, -1), axis=-1)
    return jnp.where(jnp.any(found, axis=-1), jnp.argmax(found, axis=-1), last)
