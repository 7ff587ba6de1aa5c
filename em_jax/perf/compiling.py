"""Compiling for absent TPUs and GPUs with the compilers in libtpu and in jax's CUDA plugin, and what they report."""

import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from em_jax.base import runtime
from em_jax.base.errors import UsageError, UserError
from em_jax.perf import gpu_target
from em_jax.perf.program_work import ProgramWork, work_of_text
from em_jax.runs.chips import GIB, parse_topology
from em_jax.runs.programs import Program

PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
EXTRAS = {"tpu": ("plan", "libtpu"), "gpu": ("plan-gpu", "jax's CUDA plugin and nvcc")}
"""The extra of em_jax that installs the compiler for a platform, and what that is."""


class CompiledProgram(NamedTuple):
    """A program's bytes per device by kind, the seconds it took to compile, and what its text says of its work.

    `whole` is False where the compiler refused the program: it then reports only the sum that it needs, and no text.
    Nor is there `work` where this jaxlib cannot read the text of a newer compiler.
    """

    name: str
    kinds: dict[str, int]
    seconds: float
    whole: bool
    work: ProgramWork | None = None

    @property
    def bytes(self) -> int:
        """What a device must hold at once."""
        return sum(self.kinds.values())


def prepare(platform: str) -> None:
    """Let jax use the CPU only, with the compiler flags of a run on `platform`; call it before jax looks for devices.

    Planning needs no device, and one that is there stays free.
    """
    if platform == "gpu":
        runtime.set_compiler_flags(runtime.GPU_FLAGS)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    jax.config.update("jax_platforms", "cpu")
    runtime.quiet_libtpu()


def is_installed(platform: str) -> bool:
    """Whether the compiler for tpu or gpu is installed."""
    return any(importlib.util.find_spec(name) for name in PACKAGES[platform])


def devices(topology: str) -> Sequence[Any]:
    """The devices of a topology such as v5e:4x4 or h100:8, one for each chip. UsageError where there is no such slice.

    Raises UserError where the compiler is not installed.
    """
    chip, count = parse_topology(topology)
    if not is_installed(chip.platform):
        extra, package = EXTRAS[chip.platform]
        raise UserError(
            f"planning for {topology} needs the compiler (no device): pip install '.[{extra}]' installs {package}"
        )
    from jax.experimental import topologies

    if chip.platform == "gpu":
        _assume_cudnn()
        config, shape = gpu_target.target_config(chip.name), f"1x1x{count}"  # partitions x hosts x GPUs
        with runtime.native_stderr_dropped():
            return topologies.get_topology_desc(chip.name, "cuda", target_config=config, topology=shape).devices
    # A v4 chip is two cores that work as one device.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # libtpu documents no exception
        raise UsageError(f"--topology: there is no slice {topology}: {str(error).splitlines()[0]}") from None


def _assume_cudnn() -> None:
    """Let jax trace cuDNN's attention without cuDNN: it compares the version only, and the library has 717 MB."""
    major, minor, patch = gpu_target.CUDNN
    from jax._src.cudnn import fused_attention_stablehlo

    fused_attention_stablehlo.check_cudnn_version = lambda: 10_000 * major + 100 * minor + patch


def compile_program(program: Program) -> CompiledProgram:
    """Compile for the devices of the program's arguments."""
    start = time.perf_counter()
    work = None
    try:
        with runtime.native_stderr_dropped():
            compiled = program.traced.lower().compile()
        stats = compiled.memory_analysis()
        kinds = {
            "arguments": stats.argument_size_in_bytes,
            "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "program": stats.generated_code_size_in_bytes,
        }
        work = _work(compiled, program.loops)
    except Exception as error:  # jax raises JaxRuntimeError for everything
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        kinds = {"refused by the compiler": needed}
    whole = "program" in kinds
    return CompiledProgram(program.name, kinds | program.beside, time.perf_counter() - start, whole, work)


def _work(compiled: jax.stages.Compiled, loops: int) -> ProgramWork | None:
    """What the compiled text says; None where jaxlib does not know an instruction that its compiler has."""
    try:
        with runtime.native_stderr_dropped():
            text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return work_of_text(text, loops)


def needed_bytes(message: str) -> int | None:
    """The bytes that a program refused for its size needs, from the compiler's message; None for other messages."""
    size = re.search(r"\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or not size:
        return None
    number, unit = size[1] or size[3], size[2] or size[4]
    return int(float(number) * GIB * 1024 ** ("KMGT".index(unit) - 2))
