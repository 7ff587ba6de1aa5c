"""What to change where a plan does not fit: candidates in order of what they cost, the likely ones tried first."""

import math
from collections.abc import Iterator

from em_jax import config as settings
from em_jax.base.errors import UsageError
from em_jax.model.sharding import MESH_AXES, check_mesh
from em_jax.runs.programs import Shapes

MARGIN = 0.97
"""The share of a chip's memory that a reckoned size may reach to be worth a try."""


def rows_that_fit(rows: int, parts: int, needed: int, fixed: int, memory: int) -> Iterator[int]:
    """Fewer rows to a pass, halved again and again, from the most that should fit; they divide over `parts`.

    What a pass needs beyond `fixed` bytes (weights, adapter, moments) is taken to grow with its rows.
    """
    while rows % (2 * parts) == 0:
        rows //= 2
        needed = fixed + (needed - fixed) // 2
        if needed <= MARGIN * memory:
            yield rows


def int8(config: settings.Config) -> settings.Config | None:
    """The settings with an int8 base, None where they have it."""
    if config.model.quantization == "int8":
        return None
    return settings.replace(config, {"model.quantization": "int8"})


def other_meshes(shapes: Shapes, rows: int) -> Iterator[dict[str, int]]:
    """Meshes of as many chips with more tensor parts (weights and activations split further), fewest first."""
    sizes = dict(shapes.sharding.mesh.shape) if shapes.sharding.mesh else {}
    count = math.prod(sizes.values())
    tensor = 2 * sizes.get("tensor", 1)
    while count % tensor == 0:
        mesh = dict(zip(MESH_AXES, (1, count // tensor, tensor), strict=True))
        try:
            check_mesh(mesh, shapes.config.dims)
        except UsageError:
            return
        if rows % (count // tensor) == 0:
            yield mesh
        tensor *= 2
