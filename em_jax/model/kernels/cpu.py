"""Attention and low-rank updates with backward passes written by hand, in the order of operands XLA:CPU needs.

Low-rank updates are the same everywhere. Attention keeps little for the backward pass, so it is also used wherever a
device has no kernel of its own.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from em_jax.model.attention import KVBlock, group_heads, merge_heads, softmax_attention
from em_jax.model.layout import einsum_f32
from em_jax.model.remat import ATTENDED, LOW
from em_jax.model.sharding import UNSHARDED, Sharding

# Attention

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


# Low-rank updates


def _gathered(
    x: Array, a: Sequence[Array], b: Sequence[Array], letters: tuple[str, ...], sharding: Sharding
) -> tuple[Float[Array, "X S R"], list[Array]]:
    """A's side by side and every B, as their matmuls read them."""
    a = [sharding.gather_for_matmul(f"{each[0]}SR", factor.astype(x.dtype)) for each, factor in zip(letters, a)]
    b = [sharding.gather_for_matmul(f"SR{each[1]}", factor.astype(x.dtype)) for each, factor in zip(letters, b)]
    return jnp.concatenate(a, -1), b


def _gain_of_ranks(gain: Sequence[Float[Array, "#B S"]], b: Sequence[Array]) -> Float[Array, "#B 1 S R"]:
    """The gain of every rank of A's that stand side by side."""
    each = [jnp.broadcast_to(g[:, None, :, None], (len(g), 1, *factor.shape[:2])) for g, factor in zip(gain, b)]
    return jnp.concatenate(each, -1)


def _is_alone(a: Sequence[Float[Array, "X S R"]]) -> bool:
    """Whether there is one adapter, whose gain is that of its outputs and not of its ranks."""
    return a[0].shape[1] == 1


def _split_ranks(low: Float[Array, "B T S R"], b: Sequence[Array]) -> list[Array]:
    """The ranks of each B."""
    return jnp.split(low, list(itertools.accumulate(factor.shape[1] for factor in b))[:-1], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def low_rank(
    x: Float[Array, "B T X"],
    a: tuple[Float[Array, "X S R"], ...],
    b: tuple[Float[Array, "S R Y"], ...],
    gain: tuple[Float[Array, "#B S"], ...],
    letters: tuple[str, ...] = ("XY",),
    sharding: Sharding = UNSHARDED,
) -> list[Float[Array, "B T Y"]]:
    """Sum over S of gain_S (x A_S) B_S for each weight of X inputs and its Y outputs; x A is one product for all.

    The gradients of `a` and `b` are float32, `gain` gets none; autodiff would multiply float32 by 16 bits and round
    them to those. `letters` stand for each X and Y in the sharding table: over a mesh `a` and `b` are gathered in the
    dtype of `x`, and their gradients are summed where they are stored.
    """
    return _low_rank_forward(x, a, b, gain, letters, sharding)[0]


def stacked_low_rank(
    x: Float[Array, "B T X"],
    a: Float[Array, "X S JR"],
    b: Float[Array, "J S R Y"],
    gain: Float[Array, "#B S"],
    letter: str,
    sharding: Sharding,
) -> Float[Array, "J B T Y"]:
    """`low_rank` of one adapter, S = 1, and J weights of the same shape in two products, for sampling alone."""
    a = sharding.gather_for_matmul(f"{letter}SR", a)
    low = einsum_f32("BTX,XSR->BTSR", x, a).astype(x.dtype)
    low = low.reshape(*low.shape[:3], len(b), -1)
    y = einsum_f32("BTSJR,JSRY->JBTY", low, b).astype(x.dtype)
    return (y * gain[None, :, None]).astype(x.dtype)


def _low_rank_forward(
    x: Array, a: tuple, b: tuple, gain: tuple, letters: tuple[str, ...], sharding: Sharding
) -> tuple[list[Array], tuple]:
    joint_a, in_use_b = _gathered(x, a, b, letters, sharding)
    low = einsum_f32("BTX,XSR->BTSR", x, joint_a)
    low = low if _is_alone(a) else low * _gain_of_ranks(gain, b)
    low = checkpoint_name(low.astype(x.dtype), LOW)
    y = [einsum_f32("BTSR,SRY->BTY", *each).astype(x.dtype) for each in zip(_split_ranks(low, b), in_use_b)]
    # As in PEFT the gain of one adapter is that of its outputs, whose sum takes it in; `low` would need a kernel more.
    y = [(each * g[:, None]).astype(x.dtype) for each, g in zip(y, gain)] if _is_alone(a) else y
    return y, (x, a, b, gain, low)


def _low_rank_backward(
    letters: tuple[str, ...], sharding: Sharding, saved: tuple, dy: list[Array]
) -> tuple[Array, tuple, tuple, None]:
    """XLA:CPU transposes a contraction's first operand; put the rank-R one there.

    Autodiff puts `dy` there, which takes a quarter of the training step's time.
    """
    x, a, b, gain, low = saved
    x = sharding.operand(letters[0][0], x)
    dy = [sharding.operand(names[1], each) for names, each in zip(letters, dy)]
    joint_a, in_use_b = _gathered(x, a, b, letters, sharding)
    dlow = jnp.concatenate([einsum_f32("BTY,SRY->BTSR", *each) for each in zip(dy, in_use_b)], -1)
    dlow = (dlow * _gain_of_ranks(gain, b)).astype(x.dtype)
    low = (low * _gain_of_ranks(gain, b)).astype(x.dtype) if _is_alone(a) else low
    dx = einsum_f32("BTSR,XSR->BTX", dlow, joint_a).astype(x.dtype)
    da, db = [], []
    for names, dlow_of, low_of, dy_of in zip(letters, _split_ranks(dlow, b), _split_ranks(low, b), dy):
        by_a = jnp.moveaxis(einsum_f32("BTSR,BTX->SRX", dlow_of, x), 2, 0)
        da.append(sharding.scatter_factor(f"{names[0]}SR", by_a))
        db.append(sharding.scatter_factor(f"SR{names[1]}", einsum_f32("BTSR,BTY->SRY", low_of, dy_of)))
    return dx, tuple(da), tuple(db), None


low_rank.defvjp(_low_rank_forward, _low_rank_backward)
