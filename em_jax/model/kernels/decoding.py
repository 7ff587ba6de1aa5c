"""Attention of one new token to a key/value cache: one kernel of an NVIDIA GPU, written in Pallas."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from em_jax.model.attention import CACHE_AXES, KVCache
from em_jax.model.kernels.per_device import per_device
from em_jax.model.sharding import Sharding

HEADS = 16
"""Query heads in a program, padded: the fewest rows of a product on tensor cores."""
BLOCK_BYTES = 128
"""Bytes of a block of keys along its tokens: with heads of 128, two stages take at most 64 KiB of shared memory."""
WIDEST = 128
"""The widest heads whose blocks fit the shared memory of every supported GPU."""
LOWEST = float(jnp.finfo(jnp.float32).min)


def serves(heads: int, width: int, capacity: int, steps: int, dtype: DTypeLike, sharding: Sharding) -> bool:
    """Whether the kernel takes `heads` query heads of this width a key head, and caches of these sizes."""
    sizes = width >= 16 and steps >= 16 and not width & (width - 1) and not steps & (steps - 1)
    fits = heads <= HEADS and width <= WIDEST and capacity % block_of(dtype) == 0
    return sharding.platform == "gpu" and sizes and fits


def block_of(dtype: DTypeLike) -> int:
    """Keys that are read at once."""
    return BLOCK_BYTES // jnp.dtype(dtype).itemsize


def decoding_attention(
    q: Float[Array, "B 1 N H"], cache: KVCache, sharding: Sharding, *, interpret: bool = False
) -> Float[Array, "B 1 N H"]:
    """softmax(QK^T / sqrt(H)) V over the filled part of a layer's cache, the token's own keys and values included.

    A program computes the heads that share keys, a block of keys after another with a running maximum and sum (Dao et
    al., arXiv:2205.14135): no scores are stored, and only the filled part of the prefix is read. Scores and sums are
    float32. `interpret` runs the kernel in Python, on any device.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def on_device(q: Array, k: Array, v: Array, chunk_k: Array, chunk_v: Array, length: Array, written: Array) -> Array:
        batch, _, heads, width = q.shape
        groups = k.shape[1]
        q = q.reshape(batch, groups, heads // groups, width)

        def whole(*sizes: int) -> Any:
            """The part of an array that the program of a row and a key head sees."""
            return pl.BlockSpec((None, None, *sizes), lambda row, group: (row, group, 0, 0))

        out = pl.pallas_call(
            functools.partial(_kernel, heads=heads // groups, block=block_of(k.dtype)),
            grid=(batch, groups),
            in_specs=[
                whole(HEADS, width), whole(*k.shape[2:]), whole(*v.shape[2:]), whole(*chunk_k.shape[2:]),
                whole(*chunk_v.shape[2:]), pl.BlockSpec((None,), lambda row, _: (row,)),
                pl.BlockSpec((), lambda *_: ()),
            ],
            out_specs=whole(HEADS, width),
            out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
            name="decoding_attention",
        )(q, k, v, chunk_k, chunk_v, length, written)  # fmt: skip
        return out.reshape(batch, 1, heads, width)

    arrays = q, *cache.prefix, *cache.chunk, cache.length, cache.write_index + 1
    axes = ("batch", "length", "q_heads", None), *[CACHE_AXES] * 4, ("batch",), ()
    return per_device(on_device, arrays, axes, sharding)


def _kernel(
    q_ref: Any, k_ref: Any, v_ref: Any, chunk_k_ref: Any, chunk_v_ref: Any, length_ref: Any, written_ref: Any,
    out_ref: Any, *, heads: int, block: int
) -> None:  # fmt: skip
    """One row and key head: q [HEADS, H], of which `heads` are there, keys [H, S], values [S, H], out as q."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    width = q_ref.shape[-1]
    present = (jnp.arange(HEADS) < heads)[:, None]
    q = triton.load(q_ref.at[:, :], mask=present, other=0.0)

    def attend(state: tuple, k: Array, v: Array, visible: Array) -> tuple:
        """The state (weighted sum of values, maximum, sum of weights) after more keys."""
        out, maximum, total = state
        scores = triton.dot(q, k, allow_tf32=False) * width**-0.5
        scores = jnp.where(visible[None], scores, LOWEST)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - new_maximum[:, None])
        kept = jnp.exp(maximum - new_maximum)
        out = out * kept[:, None] + triton.dot(weights.astype(v.dtype), v, allow_tf32=False)
        return out, new_maximum, total * kept + jnp.sum(weights, axis=1)

    def attend_to_block(i: Array, state: tuple) -> tuple:
        tokens = pl.ds(i * block, block)
        visible = i * block + jnp.arange(block) < length_ref[()]
        return attend(state, k_ref[:, tokens], v_ref[tokens, :], visible)

    # The chunk first: it has a visible token, so that no maximum is that of hidden ones alone.
    start = jnp.zeros((HEADS, width), jnp.float32), jnp.full(HEADS, LOWEST), jnp.zeros(HEADS, jnp.float32)
    visible = jnp.arange(chunk_k_ref.shape[-1]) < written_ref[()]
    state = attend(start, chunk_k_ref[:, :], chunk_v_ref[:, :], visible)
    out, _, total = jax.lax.fori_loop(0, pl.cdiv(length_ref[()], block), attend_to_block, state)
    triton.store(out_ref.at[:, :], (out / total[:, None]).astype(out_ref.dtype), mask=present)
