"""Memory and peak speed of TPU chips and NVIDIA GPUs, and the chips that a topology names."""

import contextlib
import dataclasses
import math
import os
from typing import Any

from em_jax.base.errors import UsageError

GIB = 2**30
GPU_SHARE = 0.75
"""The share of a GPU's memory that jax allocates unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
GPU_SHARE_MOST = 0.95
"""The largest share that leaves room for the driver, cuBLAS and cuDNN."""
LARGEST = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}
"""The chips of the largest slice; of GPUs 8, which one machine links. On larger slices libtpu aborts the process."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's name, its memory as the compiler or driver states it (bytes), its published peaks, and its slices' axes.

    `flops` is dense bfloat16 per second; `bandwidth` to its memory and `links`, the sum over its links to other chips
    in both directions, are bytes per second. `kind` is jax's device_kind. Source of the peaks: Google Cloud's pages on
    each TPU version, NVIDIA's data sheets of the SXM cards.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    axes: int
    kind: str = ""
    platform: str = "tpu"

    @property
    def capacity(self) -> int:
        """The bytes of memory that a program may use."""
        return int(self.memory * self.share)

    @property
    def share(self) -> float:
        """The share of the memory that jax allocates."""
        if self.platform != "gpu":
            return 1.0
        text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
        try:
            share = float(text or GPU_SHARE)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise UsageError(f"XLA_PYTHON_CLIENT_MEM_FRACTION: expected a number above 0 and up to 1, found {text!r}")
        return share


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 300e9, 3, "TPU v4"),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, 2, "TPU v5 lite"),
        Chip("v5p", int(95.73 * GIB), 459e12, 2765e9, 600e9, 3, "TPU v5"),
        Chip("v6e", int(31.24 * GIB), 918e12, 1640e9, 448e9, 2, "TPU v6 lite"),
        Chip("a100", 85100068864, 312e12, 2039e9, 600e9, 1, "NVIDIA A100-SXM4-80GB", "gpu"),
        Chip("h100", 84942979072, 989e12, 3350e9, 900e9, 1, "NVIDIA H100 80GB HBM3", "gpu"),
        Chip("h200", 151397597184, 989e12, 4800e9, 900e9, 1, "NVIDIA H200", "gpu"),
    )
}


def parse_topology(text: str) -> tuple[Chip, int]:
    """The chip and the number of chips of "v5e:4x4" or "h100:8". UsageError for anything else."""
    name, _, bounds = text.partition(":")
    sizes = bounds.split("x")
    if name not in CHIPS or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
        raise UsageError(
            f"--topology expects a chip ({', '.join(CHIPS)}) and its slice or number, as in v5e:4x4, v5p:2x2x2 or "
            f"h100:8; found {text!r}"
        )
    chip, count = CHIPS[name], math.prod(map(int, sizes))
    if len(sizes) != chip.axes:
        example = {1: "8", 2: "4x4", 3: "2x2x2"}[chip.axes]
        axes = f"{chip.axes} axes" if chip.axes > 1 else "one number, no axes"
        raise UsageError(f"--topology: slices of {name} have {axes}, as in {name}:{example}; found {text!r}")
    if count > (most := LARGEST.get(name, 8)):
        raise UsageError(f"--topology: expected up to {most} chips of {name} together; found {text!r}")
    return chip, count


def chip_of(device: Any) -> tuple[Chip, bool]:
    """The chip of a jax device, its memory that which jax may use, and whether its peaks are known.

    Where they are not, those of an A100 stand in: a choice between meshes then rests on its proportions.
    """
    # The longest first: "TPU v5" begins "TPU v5 lite".
    chips = sorted(CHIPS.values(), key=lambda chip: -len(chip.kind))
    known = next((chip for chip in chips if device.device_kind.startswith(chip.kind)), None)
    chip = known or dataclasses.replace(CHIPS["a100"], name=device.device_kind, platform=device.platform)
    limit = chip.capacity
    # A device that is only compiled for has no statistics.
    with contextlib.suppress(Exception):
        limit = device.memory_stats()["bytes_limit"]
    return dataclasses.replace(chip, memory=limit), known is not None
