"""Appends to a cache at each row's own length: row by row on a CPU, in one update elsewhere."""

from typing import Any

import jax
from jaxtyping import Array, Int


def append_rows(axis: int, cache: Array, chunk: Array, length: Int[Array, "B"]) -> Array:
    """`cache` with row b of `chunk` in its row b, from length[b] on along `axis` (negative); [..., B, K, *, *] each.

    XLA:CPU runs a loop over rows in place and a batched update element by element; on a GPU the loop is a launch for
    every row and layer.
    """
    batch = cache.ndim - 4

    def one_by_one(cache: Array, chunk: Array, length: Array) -> Array:
        def copy(row: Array, cache: Array) -> Array:
            index: list[Any] = [0] * cache.ndim
            index[batch], index[axis] = row, length[row]
            return jax.lax.dynamic_update_slice(cache, jax.lax.dynamic_slice_in_dim(chunk, row, 1, batch), index)

        return jax.lax.fori_loop(0, len(length), copy, cache)

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
