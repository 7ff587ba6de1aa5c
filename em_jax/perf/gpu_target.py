"""The description of an absent NVIDIA GPU that XLA's GPU compiler asks for."""

from em_jax.runs.chips import CHIPS

CUDNN = (9, 10, 0)
"""The version of cuDNN for which programs are compiled."""
CUDA = "12.9.0"

CORES = {
    "a100": (108, 64, 40 << 20, 1.41, 164 << 10, 8, 12),
    "h100": (132, 128, 50 << 20, 1.98, 228 << 10, 9, 18),
    "h200": (132, 128, 50 << 20, 1.98, 228 << 10, 9, 18),
}
"""What the compiler must know besides memory and speed: streaming multiprocessors, the float32 units of each, the L2
cache in bytes, the clock in GHz, each one's bytes of shared memory, the major compute capability, NVLinks. From
NVIDIA's tuning guides and data sheets of the SXM cards."""


def target_config(name: str) -> str:
    """The GPU as XLA's GpuTargetConfigProto in text form."""
    chip = CHIPS[name]
    multiprocessors, float_units, cache, clock, shared, capability, links = CORES[name]
    major, minor, patch = CUDNN
    # What only this generation has: wgmma and the tensor memory accelerator.
    features = " feature_extension: ACCELERATED_FEATURES" if capability == 9 else ""
    # A block may have all shared memory but the kibibyte that the system keeps.
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          threads_per_core_limit: 2048
          shared_memory_per_block: {48 << 10}
          shared_memory_per_block_optin: {shared - (1 << 10)}
          shared_memory_per_core: {shared}
          core_count: {multiprocessors}
          fpus_per_core: {float_units}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {int(chip.bandwidth)}
          l2_cache_size: {cache}
          clock_rate_ghz: {clock}
          device_memory_size: {chip.memory}
          cuda_compute_capability {{ major: {capability}{features} }}
          device_vendor: "NVIDIA Corporation"
          name: "{chip.kind}"
          device_interconnect_info {{ active_links: {links} }}
          driver_version: "{CUDA}"
          runtime_version: "{CUDA}"
          compile_time_toolkit_version: "{CUDA}"
          dnn_version: "{major}.{minor}.{patch}"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
        device_description_str: "{chip.kind}"
    """
