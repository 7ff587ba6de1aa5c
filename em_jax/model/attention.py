"""Attention: one function for training, prefill, decoding and choices."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from em_jax.model.kernels import cudnn, splash
from em_jax.model.linear import einsum_f32
from em_jax.model.remat import ATTENDED
from em_jax.model.sharding import UNSHARDED, Sharding

SHARED = 0
"""Tokens of this segment are seen by every segment of their row: a prompt under several continuations."""
PADDING = -1
"""Tokens of this segment are seen by nobody."""
LEAST_PIECE = 128
"""Attention of so few queries is not cut into pieces: on a CPU larger products are faster ones."""


class KVBlock(NamedTuple):
    """A stretch of keys and values and which of them each query may look at.

    Keys stand as columns: so the product with the queries is a plain one, as that of the weights with the values is,
    and on a CPU twice as fast as with keys as rows.
    """

    k: Float[Array, "B K H S"]
    v: Float[Array, "B K S H"]
    mask: Bool[Array, "B T S"]


def attention_mask(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """The causal mask: a key is seen from its own position on, within its segment or if it is SHARED."""
    mask = query_positions[:, :, None] >= key_positions[:, None, :]
    if query_segments is not None:
        key_segments = key_segments[:, None, :]
        mask &= (key_segments == query_segments[:, :, None]) | (key_segments == SHARED)
    return mask


def attention(q: Float[Array, "B T N H"], kv_blocks: Sequence[KVBlock]) -> Float[Array, "B T N H"]:
    """Grouped-query softmax attention over all the stretches together, each key scaled by 1/sqrt(H).

    Scores and softmax are float32. Several stretches (a long cache that is only read, a short one that is written)
    share one softmax, so that nothing is copied to lay them end to end. A query that sees nothing gets a mean, not NaN.
    """
    return _by_head(_attend(_by_group(q, kv_blocks[0].k.shape[1]), kv_blocks)[0], q.shape[1])


def causal_attention(
    q: Float[Array, "B T N H"],
    keys: KVBlock,
    *,
    packed: Int[Array, "B T"] | None = None,
    sharding: Sharding = UNSHARDED,
    query_blocks: int = 4,
) -> Float[Array, "B T N H"]:
    """`attention` of tokens to themselves, where the mask lets none see a later one of its row.

    A piece of the queries at a time meets the keys up to its own end, so that most of what is masked is not computed,
    and no T x S scores are kept for the backward pass. Where the mask is causal by place within segments that are kept
    wholly `packed`, a TPU's or a GPU's own kernel does the same.
    """
    length = q.shape[1]
    if packed is not None and splash.serves(length, q.shape[-1], sharding):
        return splash.splash_attention(q, jnp.swapaxes(keys.k, 2, 3), keys.v, packed, sharding)
    if packed is not None and cudnn.serves(length, q.shape[-1], q.dtype, sharding):
        return cudnn.cudnn_attention(q, jnp.swapaxes(keys.k, 2, 3), keys.v, packed, sharding)
    size = max(LEAST_PIECE, -(-length // query_blocks))
    parts = []
    for start in range(0, length, size):
        end = min(start + size, length)
        seen = KVBlock(keys.k[..., :end], keys.v[:, :, :end], keys.mask[:, start:end, :end])
        parts.append(_piece(q[:, start:end], seen))
    return jnp.concatenate(parts, axis=1)


@jax.custom_vjp
def _piece(q: Float[Array, "B T N H"], keys: KVBlock) -> Float[Array, "B T N H"]:
    return _piece_forward(q, keys)[0]


def _piece_forward(q: Array, keys: KVBlock) -> tuple[Array, tuple]:
    rows = _by_group(q, keys.k.shape[1])
    out, log_total = (checkpoint_name(x, ATTENDED) for x in _attend(rows, [keys]))
    return _by_head(out, q.shape[1]), (rows, keys, out, log_total)


def _piece_backward(saved: tuple, dout: Array) -> tuple[Array, KVBlock]:
    """Computes the scores again, as Dao et al. do (arXiv:2205.14135): fresh memory for them costs more than that.

    They stand as [S, X]: then every product's thin operand is the one that XLA on a CPU transposes.
    """
    rows, keys, out, log_total = saved
    length, scale = dout.shape[1], dout.shape[-1] ** -0.5
    dout = _by_group(dout, keys.k.shape[1])
    # The tie to the gradient keeps XLA, which drops barriers on a CPU, from doing this in the forward pass already.
    rows = rows + 0 * dout
    score = einsum_f32("BKHS,BKXH->BKSX", keys.k, rows) * scale
    weight = jnp.exp(score - log_total[:, :, None])
    mask = jnp.swapaxes(keys.mask, 1, 2)[:, None, :, None]
    weight = jnp.where(mask, weight.reshape(*weight.shape[:3], -1, length), 0.0).reshape(weight.shape)
    dv = einsum_f32("BKSX,BKXH->BKSH", weight.astype(dout.dtype), dout)
    mean = jnp.sum(dout.astype(jnp.float32) * out, axis=-1)
    dscore = weight * (einsum_f32("BKSH,BKXH->BKSX", keys.v, dout) - mean[:, :, None]) * scale
    dscore = dscore.astype(rows.dtype)
    dk = einsum_f32("BKXH,BKSX->BKHS", rows, dscore)
    dq = jnp.swapaxes(einsum_f32("BKHS,BKSX->BKHX", keys.k, dscore), 2, 3)
    return _by_head(dq.astype(rows.dtype), length), KVBlock(dk.astype(keys.k.dtype), dv.astype(keys.v.dtype), None)


_piece.defvjp(_piece_forward, _piece_backward)


def _attend(
    rows: Float[Array, "B K X H"], kv_blocks: Sequence[KVBlock]
) -> tuple[Float[Array, "B K X H"], Float[Array, "B K X"]]:
    """Attention of the heads of a group as rows of one matrix, and the logarithm of the softmax's denominator."""
    batch, groups, _, width = rows.shape
    score = jnp.concatenate([einsum_f32("BKXH,BKHS->BKXS", rows, keys.k) for keys in kv_blocks], axis=-1) * width**-0.5
    mask = jnp.concatenate([keys.mask for keys in kv_blocks], axis=-1)[:, None, None]
    shape = score.shape
    score = score.reshape(batch, groups, -1, *mask.shape[3:])
    score = jnp.where(mask, score, jnp.finfo(jnp.float32).min).reshape(shape)
    top = jax.lax.stop_gradient(jnp.max(score, axis=-1))
    weight = jnp.exp(score - top[..., None])
    total = jnp.sum(weight, axis=-1)
    ends = itertools.accumulate(keys.mask.shape[-1] for keys in kv_blocks)
    parts = (weight[..., end - keys.mask.shape[-1] : end] for keys, end in zip(kv_blocks, ends, strict=True))
    out = sum(
        einsum_f32("BKXS,BKSH->BKXH", part.astype(keys.v.dtype), keys.v)
        for part, keys in zip(parts, kv_blocks, strict=True)
    )
    return (out / total[..., None]).astype(rows.dtype), top + jnp.log(total)


def _by_group(x: Float[Array, "B T N H"], groups: int) -> Float[Array, "B K X H"]:
    """Heads before positions: every product is then a plain batched matmul, twice as fast on CPU as by einsum."""
    batch, length, heads, width = x.shape
    x = x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    return x.reshape(batch, groups, heads // groups * length, width)


def _by_head(x: Float[Array, "B K X H"], length: int) -> Float[Array, "B T N H"]:
    """The inverse of `_by_group`."""
    batch, groups, rows, width = x.shape
    x = x.reshape(batch, groups, rows // length, length, width).transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, length, -1, width)
