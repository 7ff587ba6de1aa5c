"""The least time that a program can take: its matmuls, its memory traffic and its collectives, each by itself.

Reckoned, not measured: matmuls at the chip's peak; every matmul's operands and results through memory once; weights
and sums over half of a chip's links (a chip at the edge of a slice has no more).
"""

import dataclasses
from typing import NamedTuple

from em_jax.model.sharding import UNSHARDED
from em_jax.perf.chips import Chip
from em_jax.perf.flops import Work, work_of
from em_jax.runs.programs import Shapes, tree_bytes, weight_sizes
from em_jax.train.batches import Shape


class Times(NamedTuple):
    """Seconds by what takes them; `flops` are those of all chips."""

    matmuls: float
    memory: float
    collectives: float
    flops: int

    @property
    def least(self) -> float:
        """All three at once: the roofline."""
        return max(self.matmuls, self.memory, self.collectives)

    @property
    def most(self) -> float:
        """None of them overlapping another."""
        return self.matmuls + self.memory + self.collectives


def train_times(shapes: Shapes, shape: Shape, chip: Chip) -> Times:
    """Of one training pass.

    Counted on the rows of one batch part with whole weights, which is what its devices compute together.
    """
    mesh = _sizes(shapes)
    parts = mesh["data"] * mesh["fsdp"]
    local = dataclasses.replace(shapes, sharding=UNSHARDED)
    program = local.train_pass(shape._replace(rows=shape.rows // parts))
    found = work_of(program.traced.jaxpr, while_steps=program.loops)
    moved = train_traffic(shapes, shape).all
    return _times(found, found.flops * parts, mesh["tensor"], moved, chip)


class Traffic(NamedTuple):
    """Bytes that a device receives: the layers' weights and the head gathered, activations and gradients summed."""

    weights: float
    head: float
    activations: float
    gradients: float

    @property
    def all(self) -> float:
        """Their sum."""
        return sum(self)


def train_traffic(shapes: Shapes, shape: Shape) -> Traffic:
    """What a training pass moves.

    Over fsdp weights are gathered once forward and once backward (recomputation shares that), the head once for both;
    over tensor the residual stream is summed after attention and MLP, once more where all of it is recomputed, and for
    each of the five matrices that read it backward. Gradients are summed over all batch parts. A sum costs twice what a
    gathering of its result does.
    """
    mesh, config = _sizes(shapes), shapes.config
    layers, table = weight_sizes(config)
    size = shapes.dtype.itemsize
    gathered = _others(mesh["fsdp"]) / mesh["tensor"]
    held = 1 if shapes.settings.model.quantization == "int8" else size
    rows = shape.rows // (mesh["data"] * mesh["fsdp"])
    stream = rows * shape.length * config.hidden_size * size
    sums = (7 + (shapes.settings.train.remat == "full")) * config.num_hidden_layers
    gradients = 2 * tree_bytes(shapes.adapter.factors) * _others(mesh["data"] * mesh["fsdp"])
    summed = 2 * sums * stream * _others(mesh["tensor"])
    return Traffic(2 * gathered * layers * held, gathered * table * size, summed, gradients)


def decode_times(shapes: Shapes, slots: int, capacity: int, chip: Chip) -> Times:
    """Of one token in every slot: everything is split over all devices."""
    mesh = _sizes(shapes)
    devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    local = dataclasses.replace(shapes, sharding=UNSHARDED)
    found = work_of(local.decode(slots, capacity).traced.jaxpr, while_steps=1)
    # Weights are read once by each data part.
    read = found.bytes + (mesh["data"] - 1) * tree_bytes(local.model)
    return _times(Work(found.flops, read), found.flops, devices, decode_traffic(shapes, slots), chip)


def decode_traffic(shapes: Shapes, slots: int) -> float:
    """Bytes that a device receives for one token in every slot, no weights among them.

    Over fsdp sums of what every projection gives from its part of the width (float32 logits among them), and the
    heads' outputs gathered; over tensor sums of the residual stream, twice a layer, and a row's logits gathered.
    """
    mesh, config = _sizes(shapes), shapes.config
    heads = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    rows = slots / mesh["data"]
    size = shapes.dtype.itemsize
    per_layer = (2 * (heads + 2 * keys + 2 * config.intermediate_size) + heads) * size / mesh["tensor"]
    logits = 2 * config.vocab_size * 4 / mesh["tensor"]
    over_fsdp = rows * (config.num_hidden_layers * per_layer + logits) * _others(mesh["fsdp"])
    stream = 2 * 2 * config.num_hidden_layers * config.hidden_size / mesh["fsdp"] * size
    drawn_from = rows / mesh["fsdp"] * config.vocab_size * 4
    return over_fsdp + (rows * stream + drawn_from) * _others(mesh["tensor"])


def _times(found: Work, flops: int, parts: int, moved: float, chip: Chip) -> Times:
    matmuls, memory = found.flops / parts / chip.flops, found.bytes / parts / chip.bandwidth
    return Times(matmuls, memory, moved / (chip.links / 2), flops)


def _others(parts: int) -> float:
    """The share of an array over so many parts that lies with others."""
    return (parts - 1) / parts


def _sizes(shapes: Shapes) -> dict[str, int]:
    mesh = shapes.sharding.mesh
    return dict(mesh.shape) if mesh else {"data": 1, "fsdp": 1, "tensor": 1}
