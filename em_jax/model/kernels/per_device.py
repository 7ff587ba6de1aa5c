"""A single-device kernel over a mesh: each device runs it on its own rows and heads."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from em_jax.model.sharding import Sharding


def per_device(
    on_device: Callable[[Array, Array, Array, Array], Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
    segments: Int[Array, "B T"],
    sharding: Sharding,
) -> Float[Array, "B T N H"]:
    """on_device(q, k, v, segments) by shard_map, because the compiler cannot split a kernel."""
    if sharding.mesh is None:
        return on_device(q, k, v, segments)
    queries = sharding.spec(("batch", "length", "q_heads", None))
    keys = sharding.spec(("batch", "kv_heads", "length", None))
    # check_vma: a kernel does not declare along which mesh axes its outputs vary.
    return jax.shard_map(
        on_device,
        mesh=sharding.mesh,
        in_specs=(queries, keys, keys, sharding.spec(("batch", "length"))),
        out_specs=queries,
        check_vma=False,
    )(q, k, v, segments)
