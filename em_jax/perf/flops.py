"""What a traced program multiplies: operations and bytes of its matmuls, loops counted as often as they run."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Floating-point operations of all matmuls, and the bytes of their operands and results."""

    flops: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]  # a tuple's would append
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> "Work":
        """The same work `count` times."""
        return Work(count * self.flops, count * self.bytes)


def work_of(jaxpr: Any, *, while_steps: int = 1) -> Work:
    """The matmuls of a jaxpr (closed or not).

    A scan counts its length, a while loop `while_steps`, of branches the one with the most operations. Everything but
    dot_general counts as nothing: fused into what is around it. So an operand that was cast is read as it was before.
    """
    return _work(jaxpr, while_steps, ())


def _work(jaxpr: Any, while_steps: int, given: Sequence[int]) -> Work:
    """`given` holds, for each argument of the jaxpr, the bytes a number of it takes in memory (none: as it says)."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    stored = dict(zip(jaxpr.invars, given, strict=True)) if given else {}

    def width(operand: Any) -> int:
        own = operand.aval.dtype.itemsize
        return own if hasattr(operand, "val") else stored.get(operand, own)

    total = Work(0, 0)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation, [width(each) for each in equation.invars])
            continue
        if name == "convert_element_type":
            stored[equation.outvars[0]] = min(width(equation.invars[0]), equation.outvars[0].aval.dtype.itemsize)
            continue
        widths = [width(each) for each in equation.invars if hasattr(each.aval, "dtype")]
        inner = [
            _work(each, while_steps, widths if len(each.invars) == len(widths) == len(equation.invars) else ())
            for each in (getattr(found, "jaxpr", found) for found in _inner(equation))
        ]
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


def _dot(equation: Any, widths: Sequence[int]) -> Work:
    left, right = (each.aval for each in equation.invars)
    out = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    read = sum(math.prod(each.shape) * width for each, width in zip((left, right), widths, strict=True))
    return Work(flops, read + math.prod(out.shape) * out.dtype.itemsize)


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation. Of a custom derivative that is the function itself: its rule is no part of it."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield each
