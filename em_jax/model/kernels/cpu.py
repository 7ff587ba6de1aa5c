"""Attention with a backward pass written by hand, in the order of operands XLA:CPU needs.

It keeps little for the backward pass, so it is also used wherever a device has no kernel of its own.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from em_jax.model.attention import KVBlock, group_heads, merge_heads, softmax_attention
from em_jax.model.layout import einsum_f32
from em_jax.model.remat import ATTENDED

QUERY_BLOCKS = 4
"""Blocks that the queries of a row are split into."""
MIN_BLOCK = 128
"""Queries in a block at least: on a CPU larger products are faster."""


def blockwise_attention(q: Float[Array, "B T N H"], keys: KVBlock) -> Float[Array, "B T N H"]:
    """`attention` of tokens to themselves, where the mask hides every later token of the row.

    Each block of queries is multiplied only with the keys up to its own end, and no T x S scores are kept for the
    backward pass. On a CPU, and on any device where no other kernel serves.
    """
    length = q.shape[1]
    size = max(MIN_BLOCK, -(-length // QUERY_BLOCKS))
    outputs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        visible = KVBlock(keys.k[..., :end], keys.v[:, :, :end], keys.mask[:, start:end, :end])
        outputs.append(_block(q[:, start:end], visible))
    return jnp.concatenate(outputs, axis=1)


@jax.custom_vjp
def _block(q: Float[Array, "B T N H"], keys: KVBlock) -> Float[Array, "B T N H"]:
    return _block_forward(q, keys)[0]


def _block_forward(q: Array, keys: KVBlock) -> tuple[Array, tuple]:
    q = group_heads(q, keys.k.shape[1])
    out, log_total = (checkpoint_name(x, ATTENDED) for x in softmax_attention(q, [keys]))
    return merge_heads(out), (q, keys, out, log_total)


def _block_backward(saved: tuple, dout: Array) -> tuple[Array, KVBlock]:
    """Recomputes the scores (Dao et al., arXiv:2205.14135): on a CPU, fresh memory for them costs more than that.

    Scores are stored [S,X], X = G T, so that XLA:CPU transposes the smaller operand.
    """
    q, keys, out, log_total = saved
    shape, scale = q.shape, q.shape[-1] ** -0.5
    q, dout, out = (x.reshape(*shape[:2], -1, shape[-1]) for x in (q, group_heads(dout, shape[1]), out))
    # Depend on `dout`, or XLA:CPU hoists the recomputation into the forward pass: it drops optimization barriers.
    q = q + 0 * dout
    scores = einsum_f32("BKHS,BKXH->BKSX", keys.k, q) * scale
    weights = jnp.exp(scores - log_total.reshape(*shape[:2], 1, -1))
    mask = jnp.swapaxes(keys.mask, 1, 2)[:, None, :, None]
    weights = jnp.where(mask, weights.reshape(*weights.shape[:3], *shape[2:4]), 0.0).reshape(weights.shape)
    dv = einsum_f32("BKSX,BKXH->BKSH", weights.astype(dout.dtype), dout)
    mean = jnp.sum(dout.astype(jnp.float32) * out, axis=-1)
    dscores = weights * (einsum_f32("BKSH,BKXH->BKSX", keys.v, dout) - mean[:, :, None]) * scale
    dscores = dscores.astype(q.dtype)
    dk = einsum_f32("BKXH,BKSX->BKHS", q, dscores)
    dq = jnp.swapaxes(einsum_f32("BKHS,BKSX->BKHX", keys.k, dscores), 2, 3)
    dq = merge_heads(dq.astype(q.dtype).reshape(shape))
    return dq, KVBlock(dk.astype(keys.k.dtype), dv.astype(keys.v.dtype), None)


_block.defvjp(_block_forward, _block_backward)
