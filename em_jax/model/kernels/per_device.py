"""A single device's kernel over a mesh: each device runs it on its own rows and heads."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from em_jax.model.sharding import Sharding


def per_device(
    own: Callable[[Array, Array, Array, Array], Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    segments: Int[Array, "B T"],
    sharding: Sharding,
) -> Float[Array, "B T N H"]:
    """own(q, k, v, segments), where the compiler cannot split a kernel by itself."""
    if sharding.mesh is None:
        return own(q, k, v, segments)
    queries = sharding.spec(("batch", "length", "q_heads", None))
    keys = sharding.spec(("batch", "kv_heads", "length", None))
    # A kernel does not say along which mesh axes its results vary, so that cannot be checked.
    return jax.shard_map(
        own,
        mesh=sharding.mesh,
        in_specs=(queries, keys, keys, sharding.spec(("batch", "length"))),
        out_specs=queries,
        check_vma=False,
    )(q, k, v, segments)
