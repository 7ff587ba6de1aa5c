"""Compiling for an absent TPU with the compiler in the libtpu package, and the memory that it reports."""

import importlib.util
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.perf.chips import GIB
from em_jax.runs.programs import Program


class CompiledProgram(NamedTuple):
    """A program's bytes per device by kind, and the seconds it took to compile.

    `whole` is False where the compiler refused the program: it then reports only the sum that it needs.
    """

    name: str
    kinds: dict[str, int]
    seconds: float
    whole: bool

    @property
    def bytes(self) -> int:
        """What a device must hold at once."""
        return sum(self.kinds.values())


def use_cpu() -> None:
    """Let jax use the CPU only; call before it looks for devices. Planning needs no device, and a TPU stays free."""
    jax.config.update("jax_platforms", "cpu")
    runtime.quiet_libtpu()


def is_installed() -> bool:
    """Whether the compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def devices(topology: str) -> Sequence[Any]:
    """The devices of a topology such as v5e:4x4, one for each chip. UsageError where there is no such slice.

    Raises UserError where libtpu is not installed.
    """
    if not is_installed():
        raise UserError("planning needs the TPU compiler (no TPU): pip install '.[plan]' installs libtpu")
    from jax.experimental import topologies

    # A v4 chip is two cores that work as one device.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu documents no exception
        raise UsageError(f"--topology: there is no slice {topology}: {str(error).splitlines()[0]}") from None


def compile_program(program: Program) -> CompiledProgram:
    """Compile for the devices of the program's arguments."""
    start = time.perf_counter()
    try:
        stats = program.traced.lower().compile().memory_analysis()
        kinds = {
            "arguments": stats.argument_size_in_bytes,
            "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "program": stats.generated_code_size_in_bytes,
        }
    except Exception as error:  # jax raises JaxRuntimeError for everything
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        kinds = {"refused by the compiler": needed}
    whole = "program" in kinds
    return CompiledProgram(program.name, kinds | program.beside, time.perf_counter() - start, whole)


def needed_bytes(message: str) -> int | None:
    """The bytes that a program refused for its size needs, from the compiler's message; None for other messages."""
    size = re.search(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or not size:
        return None
    number, unit = size[1] or size[3], size[2] or size[4]
    return int(float(number) * GIB * 1024 ** ("KMGT".index(unit) - 2))
