"""The door to the kernels: chooses what computes attention on the devices in use, and training's matmuls on a GPU."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from em_jax.model.attention import KVBlock, KVCache, attention
from em_jax.model.kernels import cpu, cudnn, decoding, few_rows, splash
from em_jax.model.kernels.low_rank import JOINT, stacked_low
from em_jax.model.linear import Linear, LoraWeights, apply_together
from em_jax.model.sharding import UNSHARDED, Sharding

TRAINING_OPTIONS: dict[str, Any] = {"xla_gpu_triton_gemm_any": False}
"""The compiler's options of a program that trains: a GPU's plain matmuls are cuBLASLt's, which add an adapter's update
to their sums. The compiler's own cannot, and an MLP's outputs would be written, read and written once more."""


def written_out(x: Float[Array, "B T D"], sharding: Sharding) -> Float[Array, "B T D"]:
    """`x`, the input of matmuls; on a GPU, if there are many tokens, as an array of its own, which keeps them plain."""
    return jax.lax.optimization_barrier(x) if sharding.platform == "gpu" and x.shape[1] > 1 else x


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
    kernel = None if packed is None else kernel_of(q.shape[1], q.shape[-1], q.dtype, sharding)
    if kernel is None:
        return cpu.blockwise_attention(q, keys)
    return kernel(q, jnp.swapaxes(keys.k, 2, 3), keys.v, packed, sharding)


def cached_attention(
    q: Float[Array, "B 1 N H"], cache: KVCache, sharding: Sharding = UNSHARDED
) -> Float[Array, "B 1 N H"]:
    """`attention` of a token to a layer's cache, in whose chunk its own keys and values are written already."""
    (batch, groups, width, capacity), steps = cache.prefix[0].shape, cache.chunk[0].shape[-1]
    if decoding.serves(q.shape[2] // groups, width, capacity, steps, q.dtype, sharding):
        return decoding.decoding_attention(q, cache, sharding)
    in_prefix = (jnp.arange(capacity)[None] < cache.length[:, None])[:, None]
    in_chunk = jnp.broadcast_to(jnp.arange(steps) <= cache.write_index, (batch, 1, steps))
    return attention(q, [KVBlock(*cache.prefix, in_prefix), KVBlock(*cache.chunk, in_chunk)])


def silu_gated(
    x: Float[Array, "B T D"],
    gate: Linear,
    up: Linear,
    lora_params: Mapping[str, LoraWeights],
    adapter_mask: Float[Array, "B S"] | None,
    sharding: Sharding,
) -> Float[Array, "B T F"]:
    """silu(gate) * up (Shazeer, arXiv:2002.05202), the updates of both included."""
    (inputs, outputs), lora = gate.weight.shape, lora_params.get(gate.name + JOINT + up.name)
    bare = x.shape[1] == 1 and not lora_params.keys() & {gate.name, up.name}
    if not (bare and few_rows.serves(len(x), inputs, outputs, x.dtype, sharding)):
        gates, ups = apply_together((gate, up), x, lora_params, adapter_mask, sharding)
        return jax.nn.silu(gates) * ups
    scales = [layer.scale[...] for layer in (gate, up) if layer.scale is not None]
    update: tuple = ()
    if lora is not None:
        low = stacked_low(x, lora, gate.layout.inputs, sharding).reshape(len(x), -1)
        gain = jnp.ones(len(x)) if adapter_mask is None else adapter_mask[:, 0]
        update = low, lora.b.reshape(-1, outputs), gain
    return few_rows.gated(x, (gate.weight[...], up.weight[...]), scales, update, sharding)


def kernel_of(length: int, width: int, dtype: DTypeLike, sharding: Sharding) -> Callable[..., Array] | None:
    """The devices' own kernel for packed rows of this length and heads of this width; None where none serves."""
    if splash.serves(length, width, sharding):
        return splash.splash_attention
    return cudnn.cudnn_attention if cudnn.serves(length, width, jnp.dtype(dtype), sharding) else None


def row_length_multiple(sharding: Sharding) -> int:
    """What the lengths of training rows must be multiples of, for the device's attention kernel to serve them."""
    return splash.LANES if sharding.platform == "tpu" else 32


def row_lengths(longest: int, multiple: int) -> list[int]:
    """Row lengths to choose from: multiples that grow by about a fifth, to twice the longest example."""
    lengths = [multiple]
    while lengths[-1] < 2 * longest:
        length = lengths[-1] + max(multiple, lengths[-1] // 5)
        lengths.append(-(-length // multiple) * multiple)
    return lengths
