"""The least time that a program can take: its matmuls, its memory traffic and its collectives, each by itself.

An estimate, not a measurement: matmuls at the chip's peak; every matmul's operands and results through memory once;
collectives over half of a chip's links (a chip at the edge of a slice has no more).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.runs import placement, placement_costs
from em_jax.runs.chips import Chip
from em_jax.runs.placement_costs import Traffic
from em_jax.runs.programs import Shapes, tree_bytes
from em_jax.train.batches import Shape


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


class Times(NamedTuple):
    """Seconds by cause; `flops` are those of all chips."""

    matmuls: float
    memory: float
    collectives: float
    flops: int

    @property
    def least(self) -> float:
        """Seconds where all three overlap: the roofline."""
        return max(self.matmuls, self.memory, self.collectives)

    @property
    def most(self) -> float:
        """Seconds where none of them overlaps another."""
        return self.matmuls + self.memory + self.collectives


def train_times(shapes: Shapes, shape: Shape, chip: Chip) -> Times:
    """The times of one training pass.

    Counted on the rows of one batch part with whole weights, which is what its devices compute together.
    """
    mesh = mesh_sizes(shapes.sharding)
    parts = mesh["data"] * mesh["fsdp"]
    local = dataclasses.replace(shapes, sharding=UNSHARDED)
    program = local.train_microbatch(shape._replace(rows=shape.rows // parts))
    work = work_of(program.traced.jaxpr, while_steps=program.loops)
    return _times(work, work.flops * parts, mesh["tensor"], sum(train_traffic(shapes, shape)), chip)


def train_traffic(shapes: Shapes, shape: Shape) -> Traffic:
    """The traffic of a training pass, by `placement_costs.train_traffic`."""
    run, mesh = placement.run_size(shapes.settings), mesh_sizes(shapes.sharding)
    return placement_costs.train_traffic(shapes.config, mesh, run, run.remat, shape)


def decode_times(shapes: Shapes, slots: int, capacity: int, chip: Chip) -> Times:
    """The times of one token in every slot: everything is split over all devices."""
    mesh = mesh_sizes(shapes.sharding)
    devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    local = dataclasses.replace(shapes, sharding=UNSHARDED)
    work = work_of(local.decode(slots, capacity).traced.jaxpr, while_steps=1)
    traffic = placement_costs.decode_traffic(shapes.config, mesh, slots, shapes.dtype.itemsize)
    # Weights are read once by each data part.
    read = work.bytes + (mesh["data"] - 1) * tree_bytes(local.model)
    return _times(Work(work.flops, read), work.flops, devices, traffic, chip)


def decode_floor(shapes: Shapes, slots: int, capacity: int) -> float:
    """The fewest bytes through a device's memory for one token in every slot.

    The projections as stored, the head, the adapter in the activations' dtype and every place of the caches, once each.
    """
    mesh = mesh_sizes(shapes.sharding)
    run, size = placement.run_size(shapes.settings), placement_costs.sizes(shapes.config, rank=0)
    adapter = sum(x.size for x in jax.tree.leaves(shapes.adapter.factors))
    layers = shapes.config.num_hidden_layers * size.layer
    weights = layers * run.stored_itemsize + (size.table + adapter) * run.itemsize
    return weights / (mesh["fsdp"] * mesh["tensor"]) + shapes.cache_bytes(slots, capacity)


def _times(work: Work, flops: int, parts: int, received: float, chip: Chip) -> Times:
    matmuls, memory = work.flops / parts / chip.flops, work.bytes / parts / chip.bandwidth
    return Times(matmuls, memory, received / (chip.links / 2), flops)


def mesh_sizes(sharding: Sharding) -> dict[str, int]:
    """The sizes of the mesh axes; all 1 without a mesh."""
    return dict(sharding.mesh.shape) if sharding.mesh else {"data": 1, "fsdp": 1, "tensor": 1}
