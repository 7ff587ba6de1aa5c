"""What a traced program multiplies: operations and bytes of its matmuls, those in loops times their iterations."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Floating-point operations of all matmuls, and the bytes of their operands and results."""

    flops: int
    bytes: int


def work_of(jaxpr: Any, *, while_steps: int = 1, itemsizes: Sequence[int] = ()) -> Work:
    """The matmuls of a jaxpr (closed or not).

    A scan counts its length, a while loop `while_steps`, of branches the one with the most operations. Everything but
    dot_general counts as nothing, as it is fused with its neighbours: so a converted operand is read in its old dtype.
    `itemsizes` are the bytes per element in which the arguments are stored (default: those of their dtypes).
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    stored = dict(zip(jaxpr.invars, itemsizes, strict=True)) if itemsizes else {}

    def itemsize(operand: Any) -> int:
        own = operand.aval.dtype.itemsize
        return own if hasattr(operand, "val") else stored.get(operand, own)

    parts: list[tuple[Work, int]] = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        sizes = [itemsize(operand) for operand in equation.invars if hasattr(operand.aval, "dtype")]
        if name == "dot_general":
            parts.append((_dot(equation, sizes), 1))
        elif name == "convert_element_type":
            stored[equation.outvars[0]] = min(sizes[0], equation.outvars[0].aval.dtype.itemsize)
        else:
            inner = []
            for each in _inner(equation):
                fits = len(each.invars) == len(sizes) == len(equation.invars)
                inner.append(work_of(each, while_steps=while_steps, itemsizes=sizes if fits else ()))
            loops = {"scan": equation.params.get("length"), "while": while_steps}.get(name, 1)
            parts += [(work, loops) for work in ([max(inner)] if name == "cond" else inner)]
    return Work(sum(n * work.flops for work, n in parts), sum(n * work.bytes for work, n in parts))


def _dot(equation: Any, itemsizes: Sequence[int]) -> Work:
    operands = [operand.aval for operand in equation.invars]
    out = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2 * math.prod(out.shape) * math.prod(operands[0].shape[axis] for axis in contracted)
    read = sum(math.prod(each.shape) * itemsize for each, itemsize in zip(operands, itemsizes, strict=True))
    return Work(flops, read + math.prod(out.shape) * out.dtype.itemsize)


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an equation. Of a custom derivative that is the function itself, not its rule."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield getattr(each, "jaxpr", each)
