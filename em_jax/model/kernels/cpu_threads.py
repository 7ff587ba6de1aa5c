"""Small programs side by side: on a CPU two of them leave no core idle where one of twice the size would.

JAX runs what one thread dispatches in order, so each of them is dispatched by a thread of its own.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from em_jax.model.sharding import Sharding

Item = TypeVar("Item")
Result = TypeVar("Result")


def concurrent_programs(sharding: Sharding) -> int:
    """Programs to dispatch concurrently: two on a lone CPU, else one (collectives could deadlock)."""
    return 2 if sharding.platform == "cpu" and sharding.mesh is None else 1


def balance(items: Sequence[Item], cost: Callable[[Item], float], count: int) -> list[list[Item]]:
    """Splits `items` into `count` lists of about equal cost: the costliest first, each to the cheapest list so far.

    With a `count` of 1 that is the items themselves, the costliest first.
    """
    lists: list[list[Item]] = [[] for _ in range(count)]
    costs = [0.0] * count
    for item in sorted(items, key=cost, reverse=True):
        cheapest = costs.index(min(costs))
        lists[cheapest].append(item)
        costs[cheapest] += cost(item)
    return lists


def dispatch(
    executor: Executor | None, function: Callable[..., Result], *args: Any, **kwargs: Any
) -> Callable[[], Result]:
    """Calls `function` in the executor's thread, or in this one where there is none; returns a getter of its result."""
    if executor is not None:
        return executor.submit(function, *args, **kwargs).result
    result = function(*args, **kwargs)
    return lambda: result
