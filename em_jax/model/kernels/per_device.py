"""A single-device kernel over a mesh: each device runs it on its own rows and heads."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array

from em_jax.model.sharding import Sharding

_KEYS = ("batch", "kv_heads", "length", None)
PACKED_AXES = ("batch", "length", "q_heads", None), _KEYS, _KEYS, ("batch", "length")
"""The logical axes of queries, keys, values and segments of packed rows."""


def per_device(
    on_device: Callable[..., Array], arrays: Sequence[Array], axes: Sequence[Sequence[str | None]], sharding: Sharding
) -> Array:
    """on_device(*arrays) by shard_map, because the compiler cannot split a kernel; `axes` are those of each array.

    The output is sharded like the first array.
    """
    if sharding.mesh is None:
        return on_device(*arrays)
    specs = tuple(map(sharding.spec, axes))
    # check_vma: a kernel does not declare along which mesh axes its outputs vary.
    mapped = jax.shard_map(on_device, mesh=sharding.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return mapped(*arrays)
