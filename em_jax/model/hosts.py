"""Arrays between the processes of a run: gathered to every host, shared from process 0."""

import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def fetch(tree: Any) -> Any:
    """Every array as numpy, whole, in every process; all processes must call. Leaf by leaf, to hold little twice.

    How long that took, which is waiting for the device, is told to jax.monitoring as "/em_jax/waiting".
    """
    began = time.monotonic()

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    found = jax.tree.map(whole, tree)
    jax.monitoring.record_event_duration_secs("/em_jax/waiting", time.monotonic() - began)
    return found


def share(tree: Any, like: Any) -> Any:
    """Process 0's numpy arrays in every process; `like` has their shapes and dtypes, the others' `tree` is not read."""
    if jax.process_count() == 1:
        return tree
    first = jax.process_index() == 0
    given = tree if first else like
    return jax.tree.map(
        lambda mine, x: multihost_utils.broadcast_one_to_all(mine if first else np.zeros(x.shape, x.dtype)), given, like
    )


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, and the same, laid out by a tree of shardings or by one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)
