"""Splash attention: jax's Pallas kernel for TPUs, which writes no scores to memory."""

import math

import jax
from jaxtyping import Array, Float, Int

from em_jax.model.kernels.per_device import PACKED_AXES, per_device
from em_jax.model.remat import ATTENDED
from em_jax.model.sharding import Sharding

LANES = 128
"""A TPU's vector lanes: lengths and head widths must be multiples of them."""
BLOCK = 512
"""Queries, and keys, in a core's own memory at once, where the length allows."""


def serves(length: int, width: int, sharding: Sharding) -> bool:
    """Whether the kernel takes heads of this width at this length on the devices in use."""
    return sharding.platform == "tpu" and length % LANES == 0 and width % LANES == 0


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    segments: Int[Array, "B T"],
    sharding: Sharding,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments, with scores scaled by 1/sqrt(H); differentiable in q, k and v.

    `interpret` runs the kernel in Python, on any device. Source: jax.experimental.pallas.ops.tpu.splash_attention.
    """

    def on_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
        """The attention of one device's rows and heads."""
        batch, length, heads, width = q.shape
        groups = k.shape[1]
        kernel = _kernel(length, heads // groups, interpret)
        q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4) * width**-0.5
        over_rows = jax.vmap(jax.vmap(kernel, (0, 0, 0, None)))
        out = over_rows(q, k, v, _segment_ids(segments))
        return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)

    return per_device(on_device, (q, k, v, segments), PACKED_AXES, sharding)


def _kernel(length: int, heads: int, interpret: bool):
    """The kernel for one row and the `heads` that share keys."""
    # Import late: Pallas takes time to import, and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = math.gcd(length, BLOCK)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = splash.BlockSizes(**dict.fromkeys(names, block), use_fused_bwd_kernel=True)
    mask = splash.MultiHeadMask([splash.CausalMask((length, length)) for _ in range(heads)])
    return splash.make_splash_mqa_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=ATTENDED, interpret=interpret
    )


def _segment_ids(segments: Array):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    return splash.SegmentIds(q=segments, kv=segments)
