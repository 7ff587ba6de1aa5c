"""The sharding of every array: one table from logical axes to mesh axes, a column for training and one for sampling."""

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
    "drawn_batch": (("data", "fsdp"), ("data", "fsdp", "tensor")),
    "length": ((), ()),
    "width": (("fsdp",), ("fsdp",)),
    "width_in_matmul": ((), ("fsdp",)),
    "q_heads": (("tensor",), ("tensor",)),
    "kv_heads": (("tensor",), ("tensor",)),
    "mlp": (("tensor",), ("tensor",)),
    "vocab": (("tensor",), ("tensor",)),
    "layers": ((), ()),
    "rank": (("fsdp",), ()),
    "factor_width": (("fsdp", "tensor"), ("fsdp",)),
}
"""The sharding table. Weights are sharded the same way in both columns; what moves between devices differs.

Training and prefill have many tokens a pass: each layer's weights are gathered over fsdp just before their matmul
("width_in_matmul"), in the dtype in which they are stored.
Sampling has one token a row: the residual stream and the MLP keep all rows of a data shard and split the width as the
weights do, so that small sums of activations travel and the weights stay in place. "lookup_batch" is the batch axis of
an embedding lookup, whose columns are sharded as the table's are; "drawn_batch" that of logits from which tokens are
drawn: every device draws for rows of its own.
In training an A or B with a width is split along it over fsdp and tensor, the others along heads or MLP and rank, so
that no adapter, gradient or moment is held twice; for a pass they are gathered as the weights are. A rank over tensor
would be contracted there: one more sum of the residual stream for every matrix.
"""

LETTERS = {"D": "width", "N": "q_heads", "K": "kv_heads", "F": "mlp", "V": "vocab", "L": "layers"}
"""The logical axis of each shape letter of a weight; a letter without one (H, J, R, S) is whole, but see `factor`."""
MATMUL_AXES = LETTERS | {"D": "width_in_matmul"}
"""The same where a matmul reads the weight."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the column of TABLE to use on it; without a mesh nothing is sharded or constrained."""

    mesh: Mesh | None = None
    sampling: bool = False

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes. ValueError if a mesh axis is used twice."""
        entries = [() if axis is None else TABLE[axis][self.sampling] for axis in axes]
        used = [name for entry in entries for name in entry]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {tuple(axes)} use a mesh axis twice: {entries}")
        if self.mesh is not None:
            # As jit writes the shardings of outputs, so that an output fed back compiles nothing anew.
            entries = [tuple(name for name in entry if self.mesh.shape[name] > 1) for entry in entries]
            while entries and not entries[-1]:
                entries.pop()
        return PartitionSpec(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))

    def named(self, axes: Sequence[str | None]) -> NamedSharding | None:
        """The NamedSharding of an array with these logical axes, None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec(axes))

    def weight(self, letters: str, shape: Sequence[int], name: str) -> NamedSharding | None:
        """The sharding of a weight by its shape letters. UserError where an axis does not divide over the mesh."""
        if self.mesh is None:
            return None
        if problem := uneven(self.mesh.shape, dict(zip(letters, shape, strict=True))):
            raise UserError(f"{name}: {problem}")
        return self.named([LETTERS.get(letter) for letter in letters])

    def factor(self, letters: str, shape: Sequence[int]) -> NamedSharding | None:
        """The sharding of an adapter's A or B by its letters; a width or rank that does not divide is split less."""
        if self.mesh is None:
            return None
        axes = [LETTERS.get(letter) for letter in letters]
        letter, axis = ("D", "factor_width") if "D" in letters else ("R", "rank")
        parts = math.prod(self.mesh.shape[name] for name in TABLE[axis][self.sampling])
        if shape[letters.index(letter)] % parts == 0:
            axes[letters.index(letter)] = axis
        return self.named(axes)

    def scatter_factor(self, letters: str, gradient: jax.Array) -> jax.Array:
        """The gradient of an adapter's A or B, split as that is."""
        sharding = self.factor(letters, gradient.shape)
        return gradient if sharding is None else jax.lax.with_sharding_constraint(gradient, sharding)

    def gather_for_matmul(self, letters: str, weight: jax.Array) -> jax.Array:
        """A weight as its matmul reads it. Call it before a cast to a wider dtype: the narrower one is communicated."""
        return self.constrain(weight, [MATMUL_AXES.get(letter) for letter in letters])

    def operand(self, letter: str, x: jax.Array) -> jax.Array:
        """An activation [B, T, X] of a matmul, X a weight's letter: rows over the batch's axes, X as in the weight.

        The gradient of an A or B is split along X; without this that split spreads to the activation, which then moves.
        """
        return self.constrain(x, ("batch", "length", MATMUL_AXES.get(letter)))

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Fixes an activation's sharding inside a jitted function; does nothing without a mesh."""
        return x if self.mesh is None else jax.lax.with_sharding_constraint(x, self.named(axes))

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu: the platform of the mesh's devices, or jax's default without a mesh."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def size(self) -> int:
        """The number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def batch_shards(self) -> int:
        """The number of shards of the batch axis; the rows of a batch must be a multiple of it."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in TABLE["batch"][self.sampling])


UNSHARDED = Sharding()


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh | None:
    """A mesh with axes data, fsdp, tensor over `devices` (by default jax's; a mesh of one of those is None).

    Missing axes have size 1; without `sizes` all devices are on fsdp. Devices beyond the sizes' product stay idle.
    Raises UsageError for an unknown axis, or where the sizes need more devices than there are.
    """
    available: Sequence[Any] = jax.devices() if devices is None else devices
    sizes = {"fsdp": len(available)} if sizes is None else sizes
    for axis, size in sizes.items():
        if axis not in MESH_AXES or size < 1:
            raise UsageError(f"mesh axis {axis}={size}: expected sizes of at least 1 for {', '.join(MESH_AXES)}")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    count = math.prod(shape)
    if count > len(available):
        raise UsageError(f"mesh {mesh_text(sizes)} needs {count} devices, found {len(available)}")
    if count == 1 and devices is None:
        return None
    return Mesh(np.asarray(available[:count]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def mesh_text(sizes: Mapping[str, int]) -> str:
    """A mesh as settings write it, "fsdp=16,tensor=2", without the axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "fsdp=1"


def uneven(sizes: Mapping[str, int], dims: Mapping[str, int]) -> str | None:
    """A message about the first axis that does not divide over the mesh, or None."""
    for letter, size in dims.items():
        over = TABLE[LETTERS[letter]][0] if letter in LETTERS else ()
        parts = math.prod(sizes[axis] for axis in over)
        if size % parts:
            name = f"axis {letter} ({LETTERS[letter]}) of size {size}"
            return f"{name} does not divide over mesh axis {'x'.join(over)}={parts}"
    return None
