"""cuDNN's flash attention through jax.nn.dot_product_attention: a kernel of NVIDIA GPUs that stores no scores."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from em_jax.model.kernels.per_device import PACKED_AXES, per_device
from em_jax.model.sharding import Sharding

WIDEST = 128
"""The widest heads that every supported GPU takes; wider ones need a Hopper."""
DTYPES = (jnp.bfloat16, jnp.float16)


def serves(length: int, width: int, dtype: DTypeLike, sharding: Sharding) -> bool:
    """Whether cuDNN takes heads of this width and dtype at this length on the devices in use."""
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
    """Causal attention within segments, with scores scaled by 1/sqrt(H); differentiable in q, k and v.

    jax's function has no argument for segments, so it gets a mask of T x T numbers a row, one for all heads; the scores
    would be N times as many. Keys and values are not repeated for the query heads that share them.
    `implementation` "xla" computes the same from the same arguments on any device.
    """

    def on_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
        """The attention of one device's rows and heads."""
        same_segment = (segments[:, :, None] == segments[:, None, :])[:, None]
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        return jax.nn.dot_product_attention(q, k, v, mask=same_segment, is_causal=True, implementation=implementation)

    return per_device(on_device, (q, k, v, segments), PACKED_AXES, sharding)
