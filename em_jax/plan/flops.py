"""What a traced program multiplies: operations and bytes of its matmuls, loops counted as often as they run."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Floating-point operations of all matmuls, and the bytes of their operands and results."""

    flops: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> "Work":
        """The same work `count` times."""
        return Work(count * self.flops, count * self.bytes)


def work_of(jaxpr: Any, *, while_steps: int = 1) -> Work:
    """The matmuls of a jaxpr (closed or not).

    A scan counts its length, a while loop `while_steps`, of branches the one with the most operations. Everything but
    dot_general counts as nothing: fused into what is around it.
    """
    total = Work(0, 0)
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
            continue
        inner = [work_of(each, while_steps=while_steps) for each in _inner(equation)]
        if name == "cond":
            total += max(inner)
            continue
        found = sum(inner, Work(0, 0))
        if name == "scan":
            found = found.times(equation.params["length"])
        elif name == "while":
            found = found.times(while_steps)
        total += found
    return total


def _dot(equation: Any) -> Work:
    left, right = (each.aval for each in equation.invars)
    out = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    return Work(flops, sum(math.prod(each.shape) * each.dtype.itemsize for each in (left, right, out)))


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation. Of a custom derivative that is the function itself: its rule is no part of it."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield each
