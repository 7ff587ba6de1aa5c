"""Where every array lives: one table from logical axes to mesh axes, a column for training and one for sampling."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from em_jax.base.errors import UsageError, UserError

MESH_AXES = ("data", "fsdp", "tensor")

TABLE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # logical axis       training            sampling
    "batch": (("data", "fsdp"), ("data", "fsdp")),
    "residual_batch": (("data", "fsdp"), ("data",)),
    "residual_width": ((), ("fsdp",)),
    "lookup_batch": (("data",), ("data",)),
    "length": ((), ()),
    "width": (("fsdp",), ("fsdp",)),
    "width_in_use": ((), ("fsdp",)),
    "q_heads": (("tensor",), ("tensor",)),
    "kv_heads": (("tensor",), ("tensor",)),
    "mlp": (("tensor",), ("tensor",)),
    "vocab": (("tensor",), ("tensor",)),
    "layers": ((), ()),
    "rank": ((), ()),
}
"""The sharding table. Weights lie the same way in both columns; what moves between devices differs.

Training (and prefill) has many tokens to a pass: a layer's weights are gathered over fsdp when it is their turn
("width_in_use"), in the dtype they are held in.
Sampling draws one token a row: the residual stream and the MLP keep all rows of a data part with their width split as
the weights' is, so that sums of a few activations travel and the weights stay where they are. "lookup_batch" is the
rows of an embedding lookup, whose columns lie where the table's do.
"""

LETTERS = {"D": "width", "N": "q_heads", "K": "kv_heads", "F": "mlp", "V": "vocab", "L": "layers", "R": "rank"}
"""The logical axis behind a shape letter of a weight; a letter without one (H, S) is never sharded."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the column of TABLE in force on it; without a mesh nothing is sharded or constrained."""

    mesh: Mesh | None = None
    sampling: bool = False

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes. ValueError if a mesh axis is used twice."""
        entries = [() if axis is None else TABLE[axis][self.sampling] for axis in axes]
        used = [name for entry in entries for name in entry]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {entries}")
        return PartitionSpec(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))

    def named(self, axes: Sequence[str | None]) -> NamedSharding | None:
        """The NamedSharding of such an array, None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec(axes))

    def weight(self, layout: str, shape: Sequence[int], name: str) -> NamedSharding | None:
        """The sharding of a weight laid out in shape letters. UserError where an axis does not divide over the mesh."""
        if self.mesh is None:
            return None
        letters = layout.replace("->", "")
        if problem := _uneven(self.mesh.shape, dict(zip(letters, shape, strict=True))):
            raise UserError(f"{name}: {problem}")
        return self.named([LETTERS.get(letter) for letter in letters])

    def gather_for_matmul(self, layout: str, weight: jax.Array) -> jax.Array:
        """A layer's weight, laid out in shape letters, as its matmul reads it. Before a cast, or that would travel."""
        axes = [LETTERS.get(letter) for letter in layout.replace("->", "")]
        return self.constrain(weight, ["width_in_use" if axis == "width" else axis for axis in axes])

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Pins an activation's layout inside a jitted function; does nothing without a mesh."""
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, self.named(axes))

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu: that of the mesh's devices, else jax's default."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def side_by_side(self) -> int:
        """How many programs are worth running at once, each asked for by a thread of its own: jax runs what one thread
        asks for in order. On a CPU two small ones leave no core idle where one of twice the size would. An accelerator
        runs one at a time, and over a mesh two could wait for each other's collectives."""
        return 2 if self.platform == "cpu" and self.mesh is None else 1

    @property
    def batch_parts(self) -> int:
        """Over how many parts the batch axis is split: rows of a batch must divide by it."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in TABLE["batch"][self.sampling])


UNSHARDED = Sharding()


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh | None:
    """A mesh with axes data, fsdp, tensor over `devices` (jax's, where one alone needs no mesh and gives None).

    Axes left out are 1; None puts all devices on fsdp. Sizes that need fewer devices than there are leave the rest
    idle. Raises UsageError for an unknown axis, or where the sizes need more devices than there are.
    """
    own = devices is None
    devices = jax.devices() if own else devices
    if sizes is None:
        sizes = {"fsdp": len(devices)}
    for axis, size in sizes.items():
        if axis not in MESH_AXES or size < 1:
            raise UsageError(f"mesh axis {axis}={size}: expected sizes of at least 1 for {', '.join(MESH_AXES)}")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    if math.prod(shape) > len(devices):
        raise UsageError(f"mesh {mesh_text(sizes)} needs {math.prod(shape)} devices, found {len(devices)}")
    if math.prod(shape) == 1 and own:
        return None
    return Mesh(
        np.asarray(devices[: math.prod(shape)]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )


def check_mesh(sizes: Mapping[str, int], dims: Mapping[str, int]) -> None:
    """Raises UsageError where a model of these sizes, by shape letter, does not divide over a mesh of these sizes.

    The line names the axis, its size and the meshes of as many devices that would work.
    """
    if (problem := _uneven(sizes, dims)) is None:
        return
    count = math.prod(sizes.values())
    shapes = ((data, fsdp, count // data // fsdp) for data in _divisors(count) for fsdp in _divisors(count // data))
    meshes = [dict(zip(MESH_AXES, shape, strict=True)) for shape in shapes]
    work = [mesh_text(mesh) for mesh in meshes if _uneven(mesh, dims) is None]
    raise UsageError(f"{problem}; of {count} devices these meshes work: {'; '.join(work)}")


def mesh_text(sizes: Mapping[str, int]) -> str:
    """A mesh as settings write it, "fsdp=16,tensor=2", without the axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "fsdp=1"


def _uneven(sizes: Mapping[str, int], dims: Mapping[str, int]) -> str | None:
    """The first axis of a weight that does not divide over the mesh, in words."""
    for letter, size in dims.items():
        over = TABLE[LETTERS[letter]][0] if letter in LETTERS else ()
        parts = math.prod(sizes[axis] for axis in over)
        if size % parts:
            name = f"axis {letter} ({LETTERS[letter]}) of size {size}"
            return f"{name} does not divide over mesh axis {'x'.join(over)}={parts}"
    return None


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
