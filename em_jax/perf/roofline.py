"""The least time that a program can take: its matmuls, its memory traffic and its collectives, each by itself.

An estimate, not a measurement: matmuls at the chip's peak; every matmul's operands and results through memory once;
collectives over half of a chip's links (a chip at the edge of a slice has no more).
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from em_jax.model.sharding import UNSHARDED, Sharding
from em_jax.perf.flops import Work, work_of
from em_jax.runs import placement_costs
from em_jax.runs.chips import Chip
from em_jax.runs.placement_costs import RunSize, Traffic
from em_jax.runs.programs import Shapes, tree_bytes, weight_sizes
from em_jax.train.batches import Shape


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
    settings = shapes.settings
    int8 = settings.model.quantization == "int8"
    run = RunSize((), rank=settings.lora.rank, int8=int8, itemsize=shapes.dtype.itemsize)
    mesh = mesh_sizes(shapes.sharding)
    return placement_costs.train_traffic(shapes.config, mesh, run, settings.train.remat, shape)


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
    layers, table = weight_sizes(shapes.config)
    itemsize = shapes.dtype.itemsize
    stored_itemsize = 1 if shapes.settings.model.quantization == "int8" else itemsize
    adapter = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.adapter.factors))
    weights = layers * stored_itemsize + (table + adapter) * itemsize
    return weights / (mesh["fsdp"] * mesh["tensor"]) + shapes.cache_bytes(slots, capacity)


def _times(work: Work, flops: int, parts: int, received: float, chip: Chip) -> Times:
    matmuls, memory = work.flops / parts / chip.flops, work.bytes / parts / chip.bandwidth
    return Times(matmuls, memory, received / (chip.links / 2), flops)


def mesh_sizes(sharding: Sharding) -> dict[str, int]:
    """The sizes of the mesh axes; all 1 without a mesh."""
    return dict(sharding.mesh.shape) if sharding.mesh else {"data": 1, "fsdp": 1, "tensor": 1}
