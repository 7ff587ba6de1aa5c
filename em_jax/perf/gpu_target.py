"""The description of an absent NVIDIA GPU that XLA's GPU compiler asks for."""

from typing import NamedTuple

from em_jax.runs.chips import CHIPS

CUDNN = (9, 10, 0)
"""The version of cuDNN for which programs are compiled."""
CUDA = "12.9.0"


class _Cores(NamedTuple):
    """What the compiler must know besides memory and speed: streaming multiprocessors, and what each of them has.

    `float_units`: of float32. `cache`: L2, bytes. `clock`: GHz. `shared`: bytes of shared memory. `links`: NVLinks.
    """

    multiprocessors: int
    float_units: int
    cache: int
    clock: float
    shared: int
    capability: int
    links: int


CORES = {
    "a100": _Cores(108, 64, 40 << 20, 1.41, 164 << 10, 8, 12),
    "h100": _Cores(132, 128, 50 << 20, 1.98, 228 << 10, 9, 18),
    "h200": _Cores(132, 128, 50 << 20, 1.98, 228 << 10, 9, 18),
}
"""NVIDIA's tuning guides and data sheets of the SXM cards."""


def target_config(name: str) -> str:
    """The GPU as XLA's GpuTargetConfigProto in text form."""
    chip, cores = CHIPS[name], CORES[name]
    major, minor, patch = CUDNN
    # What only this generation has: wgmma and the tensor memory accelerator.
    features = " feature_extension: ACCELERATED_FEATURES" if cores.capability == 9 else ""
    # A block may have all shared memory but the kibibyte that the system keeps.
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          threads_per_core_limit: 2048
          shared_memory_per_block: {48 << 10}
          shared_memory_per_block_optin: {cores.shared - (1 << 10)}
          shared_memory_per_core: {cores.shared}
          core_count: {cores.multiprocessors}
          fpus_per_core: {cores.float_units}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {int(chip.bandwidth)}
          l2_cache_size: {cores.cache}
          clock_rate_ghz: {cores.clock}
          device_memory_size: {chip.memory}
          cuda_compute_capability {{ major: {cores.capability}{features} }}
          device_vendor: "NVIDIA Corporation"
          name: "{chip.kind}"
          device_interconnect_info {{ active_links: {cores.links} }}
          driver_version: "{CUDA}"
          runtime_version: "{CUDA}"
          compile_time_toolkit_version: "{CUDA}"
          dnn_version: "{major}.{minor}.{patch}"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
        device_description_str: "{chip.kind}"
    """
