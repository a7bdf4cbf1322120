"""Properties of NVIDIA GPUs, which XLA's compiler otherwise gets from the driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class _Properties(NamedTuple):
    """Properties that differ between GPUs."""

    name: str
    capability: str  # fields of `CudaComputeCapabilityProto`
    cores: int
    units_per_core: int  # of float32
    shared_memory_per_core: int  # bytes
    shared_memory_per_block: int  # bytes, at most
    cache: int  # bytes, level 2
    memory: int  # bytes
    memory_bandwidth: int  # bytes per second
    clock: float  # GHz


# Source: XLA's own descriptions, github.com/openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb and
# a100_sxm_80.txtpb, as read in November 2026.
_GPUS: Mapping[str, _Properties] = {
    "h100": _Properties(
        "NVIDIA H100 80GB HBM3", "major: 9 feature_extension: ACCELERATED_FEATURES", 132, 128, 233472, 232448,
        52428800, 84942979072, 3352320000000, 1.98,
    ),
    "a100": _Properties(
        "NVIDIA A100-SXM4-80GB", "major: 8 feature_extension: NONE", 108, 64, 167936, 166912,
        41943040, 85100068864, 2039040000000, 1.41,
    ),
}  # fmt: skip


def target_config(gpu: str) -> str:
    """Return a `GpuTargetConfigProto` as text; its version of cuDNN is the lowest that JAX's wheels accept."""
    properties = _GPUS[gpu]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {properties.shared_memory_per_core}
  shared_memory_per_block_optin: {properties.shared_memory_per_block}
  threads_per_core_limit: 2048
  core_count: {properties.cores}
  fpus_per_core: {properties.units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {properties.memory_bandwidth}
  l2_cache_size: {properties.cache}
  clock_rate_ghz: {properties.clock}
  device_memory_size: {properties.memory}
  cuda_compute_capability {{ {properties.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
device_description_str: "{properties.name}"
"""
