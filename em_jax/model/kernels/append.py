"""Appends to a cache at each row's own length: row by row on a CPU, in one update elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def append_rows(axis: int, cache: Array, chunk: Array, length: Int[Array, "B"]) -> Array:
    """`cache` with row b of `chunk` in its row b, from length[b] on along `axis` (negative); [..., B, K, *, *] each.

    XLA:CPU runs a loop over rows in place and a batched update element by element; on a GPU the loop is a launch for
    every row and layer.
    """

    def one_by_one(cache: Array, chunk: Array, length: Array) -> Array:
        rows = jnp.arange(len(length))
        return copy_rows(axis, cache, chunk, rows, rows, length, len(length))

    return jax.lax.platform_dependent(
        cache, chunk, length, cpu=one_by_one, default=lambda *operands: append_at_once(axis, *operands)
    )


def append_at_once(axis: int, cache: Array, chunk: Array, length: Int[Array, "B"]) -> Array:
    """`append_rows` as one batched update."""
    batch = cache.ndim - 4

    def update(row: Array, new: Array, start: Array) -> Array:
        index: list[Any] = [0] * row.ndim
        index[axis] = start
        return jax.lax.dynamic_update_slice(row, new, index)

    return jax.vmap(update, (batch, batch, 0), batch)(cache, chunk, length)


def copy_rows(
    axis: int, cache: Array, new: Array, source: Array, target: Array, start: Array, number: Array | int
) -> Array:
    """`cache` with row source[i] of `new` in row target[i], from start[i] on along `axis`, for each i < `number`.

    In a loop, which XLA runs in place.
    """
    batch = cache.ndim - 4

    def copy(i: Array, cache: Array) -> Array:
        index: list[Any] = [0] * cache.ndim
        index[batch], index[axis] = target[i], start[i]
        return jax.lax.dynamic_update_slice(cache, jax.lax.dynamic_slice_in_dim(new, source[i], 1, batch), index)

    return jax.lax.fori_loop(0, number, copy, cache)
