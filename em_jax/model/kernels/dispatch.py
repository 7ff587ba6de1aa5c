"""The door to the attention kernels: chooses what computes attention on the devices in use."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from em_jax.model.attention import KVBlock
from em_jax.model.kernels import cpu, cudnn, splash
from em_jax.model.sharding import UNSHARDED, Sharding


def causal_attention(
    q: Float[Array, "B T N H"],
    keys: KVBlock,
    *,
    packed: Int[Array, "B T"] | None = None,
    sharding: Sharding = UNSHARDED,
) -> Float[Array, "B T N H"]:
    """`attention` of tokens to themselves, where the mask hides every later token of the row.

    `packed` gives the segments of rows whose examples follow one another and share nothing: there the mask is causal
    within segments, and a TPU's or a GPU's own kernel may serve.
    """
    if packed is not None and splash.serves(q.shape[1], q.shape[-1], sharding):
        return splash.splash_attention(q, jnp.swapaxes(keys.k, 2, 3), keys.v, packed, sharding)
    if packed is not None and cudnn.serves(q.shape[1], q.shape[-1], q.dtype, sharding):
        return cudnn.cudnn_attention(q, jnp.swapaxes(keys.k, 2, 3), keys.v, packed, sharding)
    return cpu.blockwise_attention(q, keys)
