"""The host's side: arrays between the processes of a run, and waiting for a device or for threads."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def to_host(tree: Any) -> Any:
    """Every array as numpy, whole, in every process; all processes must call. Leaf by leaf, to hold little twice.

    How long that took is told as `waiting` tells it.
    """

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    with waiting():
        return jax.tree.map(whole, tree)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Tells jax.monitoring, as "/em_jax/waiting", how long this thread waits inside: for the device, or for threads."""
    began = time.monotonic()
    yield
    jax.monitoring.record_event_duration_secs("/em_jax/waiting", time.monotonic() - began)


def side_by_side(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """`work` of every item, by so many threads; by this one where that is one."""
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool, waiting():
        return list(pool.map(work, items))


def broadcast(tree: Any, like: Any) -> Any:
    """Process 0's numpy arrays in every process; `like` has their shapes and dtypes, the others' `tree` is not read."""
    if jax.process_count() == 1:
        return tree
    first = jax.process_index() == 0
    given = tree if first else like
    return jax.tree.map(
        lambda mine, x: multihost_utils.broadcast_one_to_all(mine if first else np.zeros(x.shape, x.dtype)), given, like
    )


def to_devices(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, and the same, laid out by a tree of shardings or by one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)
