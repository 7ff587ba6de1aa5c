"""A draw by inverse CDF, in blocks of the vocabulary."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128
"""Tokens of the vocabulary in a block."""


def inverse_cdf(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first token of each row whose cumulative weight exceeds `uniform`, in [0, 1), times the row's sum.

    Weights are summed by block, then cumulated over blocks and within one: a cumulative sum over V is slow on a CPU and
    several passes over V on a GPU.
    """
    batch, vocabulary = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocabulary % BLOCK))).reshape(batch, -1, BLOCK)
    block_ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * block_ends[:, -1]
    # Rounding may put a target at the very end: the last block or token with any weight is the furthest a draw can go.
    last = jnp.sum(block_ends < block_ends[:, -1:], axis=-1)
    block = jnp.minimum(jnp.sum(block_ends <= target[:, None], axis=-1), last)
    before = jnp.take_along_axis(block_ends, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0]
    target -= jnp.where(block > 0, before, 0.0)
    cdf = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    last = jnp.sum(cdf < cdf[:, -1:], axis=-1)
    return (block * BLOCK + jnp.minimum(jnp.sum(cdf <= target[:, None], axis=-1), last)).astype(jnp.int32)
