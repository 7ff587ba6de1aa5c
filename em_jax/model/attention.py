"""Grouped-query softmax attention: the plain formula, its mask, and the block of keys it takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from em_jax.model.layout import einsum_f32

SHARED = 0
"""The segment that every segment of its row may attend to: a prompt under several continuations."""
PADDING = -1
"""The segment that no other segment attends to."""
CACHE_AXES = ("batch", "kv_heads", None, None)
"""The logical axes of a KVBlock's keys or values."""


class KVBlock(NamedTuple):
    """A block of keys and values, and which of them each query may attend to.

    Keys are [B,K,H,S], so QK^T needs no transpose (2x on a CPU).
    """

    k: Float[Array, "B K H S"]
    v: Float[Array, "B K S H"]
    mask: Bool[Array, "B T S"]


class KVCache(NamedTuple):
    """KV cache: a read-only prefix and a chunk buffer, each of keys and values in the axes of KVBlock.

    A row attends to the first `length` tokens of its prefix and, in the buffer, up to and including `write_index`,
    where its new token's keys and values are written; XLA can write in place. Arrays of all layers have a leading L
    where the model's layers are stacked, and are sequences of L arrays where they are not.
    """

    prefix: tuple[Any, Any]
    chunk: tuple[Any, Any]
    length: Int[Array, "B"]
    write_index: Int[Array, ""]


def attention_mask(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """The causal mask: a query attends to keys up to its own position that are of its segment or SHARED."""
    mask = query_positions[:, :, None] >= key_positions[:, None, :]
    if query_segments is not None and key_segments is not None:
        keys = key_segments[:, None, :]
        mask &= (keys == query_segments[:, :, None]) | (keys == SHARED)
    return mask


def attention(q: Float[Array, "B T N H"], kv_blocks: Sequence[KVBlock]) -> Float[Array, "B T N H"]:
    """softmax(QK^T / sqrt(H)) V over the keys of all blocks, each key/value head shared by N/K query heads.

    Scores and softmax are float32. The blocks (a long read-only cache, a short buffer) share one softmax and are not
    concatenated. A query that may attend to nothing gets the mean of all values, not NaN.
    """
    return merge_heads(softmax_attention(group_heads(q, kv_blocks[0].k.shape[1]), kv_blocks)[0])


def softmax_attention(
    q: Float[Array, "B K G T H"], kv_blocks: Sequence[KVBlock]
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T"]]:
    """`attention` of grouped heads, and the logarithm of each softmax's denominator, float32."""
    scores = jnp.concatenate([einsum_f32("BKGTH,BKHS->BKGTS", q, block.k) for block in kv_blocks], axis=-1)
    mask = jnp.concatenate([block.mask for block in kv_blocks], axis=-1)[:, None, None]
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    maximum = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - maximum[..., None])
    total = jnp.sum(weights, axis=-1)
    ends = np.cumsum([block.mask.shape[-1] for block in kv_blocks])
    out = sum(
        einsum_f32("BKGTS,BKSH->BKGTH", part.astype(block.v.dtype), block.v)
        for part, block in zip(jnp.split(weights, ends[:-1], axis=-1), kv_blocks, strict=True)
    )
    return (out / total[..., None]).astype(q.dtype), maximum + jnp.log(total)


def group_heads(x: Float[Array, "B T N H"], groups: int) -> Float[Array, "B K G T H"]:
    """Query heads by the key/value head they share; heads before positions, so that products are batched matmuls."""
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def merge_heads(x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
    """The inverse of `group_heads`."""
    batch, _, _, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, width)
