"""Memory and peak speed of TPU chips, and the chips that a topology names."""

import dataclasses
import math

from em_jax.base.errors import UsageError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's name, its memory as the compiler states it (bytes), its published peaks, and its slices' axes.

    `flops` is bfloat16 per second; `bandwidth` to its memory and `links`, the sum over its links to other chips, are
    bytes per second. Source of the peaks: Google Cloud's pages on each TPU version.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    axes: int


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 300e9, 3),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, 2),
        Chip("v5p", int(95.73 * GIB), 459e12, 2765e9, 600e9, 3),
        Chip("v6e", int(31.24 * GIB), 918e12, 1640e9, 448e9, 2),
    )
}


def parse_topology(text: str) -> tuple[Chip, int]:
    """The chip and the number of chips of "v5e:4x4". UsageError for anything else."""
    name, _, bounds = text.partition(":")
    sizes = bounds.split("x")
    if name not in CHIPS or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise UsageError(
            f"--topology expects a chip ({', '.join(CHIPS)}) and its slice, as in v5e:4x4 or v5p:2x2x2; found {text!r}"
        )
    axes = CHIPS[name].axes
    if len(sizes) != axes:
        example = "4x4" if axes == 2 else "2x2x2"
        raise UsageError(f"--topology: slices of {name} have {axes} axes, as in {name}:{example}; found {text!r}")
    return CHIPS[name], math.prod(map(int, sizes))
