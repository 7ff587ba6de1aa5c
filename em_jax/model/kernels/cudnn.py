"""cuDNN's flash attention, by jax.nn.dot_product_attention: an NVIDIA GPU's kernel that keeps no scores."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from em_jax.model.kernels.per_device import per_device
from em_jax.model.sharding import Sharding

WIDEST = 128
"""Heads wider than this need a Hopper."""
DTYPES = (jnp.bfloat16, jnp.float16)


def serves(length: int, width: int, dtype: DTypeLike, sharding: Sharding) -> bool:
    """Whether cuDNN takes heads of this width and dtype over this length on the devices in use."""
    fits = length % 2 == 0 and width % 8 == 0 and width <= WIDEST
    return sharding.platform == "gpu" and fits and dtype in DTYPES


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    segments: Int[Array, "B T"],
    sharding: Sharding,
    *,
    implementation: str = "cudnn",
) -> Float[Array, "B T N H"]:
    """Causal attention by place, within segments, each score scaled by 1/sqrt(H); differentiable in q, k and v.

    The public function knows no segments, so a mask says who sees whom: T x T numbers a row, one for all heads, where
    the scores would be N times as many. The heads of a group share their keys, which are not repeated.
    `implementation` "xla" computes the same from the same arguments on any device.
    """

    def own(q: Array, k: Array, v: Array, segments: Array) -> Array:
        """What one device does with its rows and heads."""
        together = (segments[:, :, None] == segments[:, None, :])[:, None]
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        return jax.nn.dot_product_attention(q, k, v, mask=together, is_causal=True, implementation=implementation)

    return per_device(own, q, k, v, segments, sharding)
