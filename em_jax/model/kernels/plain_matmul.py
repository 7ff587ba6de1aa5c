"""Training's matmuls on an NVIDIA GPU: plain ones, whose kernel adds an adapter's update to its sums.

The compiler's own kernels compute a norm while they read, but add nothing to what they write: the outputs of an MLP
would be written, read and written once more. cuBLASLt's kernel adds, and takes plain operands alone.
"""

from typing import Any

import jax
from jaxtyping import Array, Float

from em_jax.model.sharding import Sharding

COMPILER_OPTIONS: dict[str, Any] = {"xla_gpu_triton_gemm_any": False}
"""Of a program that trains: plain matmuls are cuBLASLt's. Other devices ignore it; sampling is faster without."""


def written_out(x: Float[Array, "B T D"], sharding: Sharding) -> Float[Array, "B T D"]:
    """`x`, which matmuls read; on a GPU, where there are many tokens, as an array of its own."""
    return jax.lax.optimization_barrier(x) if sharding.platform == "gpu" and x.shape[1] > 1 else x
