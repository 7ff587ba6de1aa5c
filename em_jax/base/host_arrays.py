"""Arrays between hosts and devices, and threads; both measure how long this thread waits."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def pad_rows(rows: Iterable[Any], count: int, length: int, fill: int = 0, dtype: Any = np.int32) -> np.ndarray:
    """An array of `count` rows of `length` that begins with `rows`; `fill` elsewhere."""
    padded = np.full((count, length), fill, dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def to_host(tree: Any) -> Any:
    """Every array as numpy, one leaf at a time to save memory; all processes must call. Its time counts as waiting."""

    def gather(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    with waiting():
        return jax.tree.map(gather, tree)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Reports the seconds that this thread spends inside to jax.monitoring, as "/em_jax/waiting"."""
    start = time.monotonic()
    yield
    jax.monitoring.record_event_duration_secs("/em_jax/waiting", time.monotonic() - start)


def map_in_threads(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """`work` of every item, in order, by `threads` threads; without new threads where that is 1."""
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool, waiting():
        return list(pool.map(work, items))


def broadcast(tree: Any, like: Any) -> Any:
    """Process 0's numpy arrays in every process; `like` has their shapes and dtypes. Only process 0 needs a `tree`."""
    if jax.process_count() == 1:
        return tree
    source = tree if jax.process_index() == 0 else jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return jax.tree.map(multihost_utils.broadcast_one_to_all, source)


def to_devices(tree: Any, shardings: Any) -> Any:
    """Device arrays of host arrays that every process has in full; `shardings`: a tree or one for all; None: as is."""

    def put(x: Any, sharding: jax.sharding.Sharding | None) -> Any:
        if sharding is None:
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(shardings, tree, is_leaf=lambda x: x is None))
