"""The compilers for TPUs and NVIDIA GPUs, which work without the device, and their options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.experimental import topologies

from crossearth_jax.aot import gpus


class Compiler(NamedTuple):
    """How to compile for accelerators of one kind."""

    name: str
    accelerator: str
    modules: tuple[str, ...]  # Python modules that must be installed
    extra: str  # extra of this package that installs them
    examples: tuple[str, ...]  # of topologies
    environment: Mapping[str, str]  # variables that are read when the compiler is loaded
    options: Mapping[str, Any]  # of every compilation
    refuses_excess: bool  # whether it fails for a program that does not fit into memory
    describe: Callable[[str, str], list[Any]]  # (chip, size) -> devices


LONGEST_SIDE = {"v5e": 16, "v6e": 16}  # chips; there are no longer slices, and the compiler aborts on v5e:16x32


def _tpu_slices(chip: str, size: str) -> list[Any]:
    sides, _, count = size.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", sides) or not re.fullmatch(r"[1-9]\d*", count or "1"):
        raise ValueError("expected the sides of a slice and optionally, after a colon, the number of slices")
    longest = LONGEST_SIDE.get(chip, math.inf)
    if max(map(int, sides.split("x"))) > longest:
        raise ValueError(f"a side has at most {longest} chips; {chip}:{longest}x{longest}:2 are two slices")
    several = {"num_slices": int(count)} if count else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:{sides}", **several).devices


def _gpu_nodes(chip: str, size: str) -> list[Any]:
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", size):
        raise ValueError("expected the GPUs of one node, or nodes x GPUs per node")
    nodes = size if "x" in size else f"1x{size}"
    properties = gpus.target_config(chip)
    return topologies.get_topology_desc(platform="cuda", topology=f"1x{nodes}", target_config=properties).devices


TPU = Compiler(
    "the TPU compiler", "TPU", ("libtpu",), "tpu", ("v5e:2x4", "v6e:16x16:2", "v5p:4x8x8"),
    # Do not look for a TPU, allow several processes to compile at the same time, log errors only.
    environment={
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    },
    options={},
    refuses_excess=True,
    describe=_tpu_slices,
)  # fmt: skip

CUDA = Compiler(
    "the CUDA compiler", "GPU", ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc"), "aot-gpu", ("h100:8", "h100:2x8"),
    environment={},
    # Autotuning would time kernels on a GPU, so default kernels are used. Matrix products use cuBLAS, because some
    # Triton kernels do not compile, and the fallback for them is part of autotuning.
    options={"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
    refuses_excess=False,
    describe=_gpu_nodes,
)  # fmt: skip
