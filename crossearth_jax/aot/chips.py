"""Accelerators whose compilers run without the device: published specifications, and descriptions of slices."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from crossearth_jax.aot.compilers import CUDA, TPU, Compiler
from crossearth_jax.config import UserError


class Chip(NamedTuple):
    """Peak performance of one chip."""

    compiler: Compiler
    flops: float  # per second, bfloat16, without sparsity
    memory: float  # bytes of HBM
    memory_bandwidth: float  # bytes per second
    interconnect: float  # bytes per second that a chip can send to its neighbours: half of the bidirectional number
    source: str
    network: float = math.inf  # bytes per second: a chip's share of the network between TPU slices; not used for GPUs


CHIPS: Mapping[str, Chip] = {
    # The source states the last number per pod of 256 chips for v5e and v6e, and per chip for v5p.
    "v5e": Chip(TPU, 197e12, 16e9, 819e9, 400e9 / 2, "https://cloud.google.com/tpu/docs/v5e", 6.4e12 / 8 / 256),
    "v6e": Chip(TPU, 918e12, 32e9, 1638e9, 800e9 / 2, "https://cloud.google.com/tpu/docs/v6e", 25.6e12 / 8 / 256),
    "v5p": Chip(TPU, 459e12, 95e9, 2765e9, 1200e9 / 2, "https://cloud.google.com/tpu/docs/v5p", 50e9 / 8),
    # SXM boards. NVIDIA states the FLOP/s of the H100 with sparsity, which is twice the value for dense matrices.
    "h100": Chip(CUDA, 1979e12 / 2, 80e9, 3350e9, 900e9 / 2, "https://www.nvidia.com/en-us/data-center/h100/"),
    "a100": Chip(CUDA, 312e12, 80e9, 2039e9, 600e9 / 2, "https://www.nvidia.com/en-us/data-center/a100/"),
}


class Roofline(NamedTuple):
    """Lower bounds of the time of a step in seconds, one for each limit of a chip; the largest is the bound."""

    compute: float
    memory: float
    interconnect: float
    network: float


def roofline(
    chip: Chip, flops: float, memory_bytes: float, sent_bytes: float, sent_between_slices: float = 0.0
) -> Roofline:
    """Divide the work of one chip in a step by its peak performance."""
    return Roofline(
        flops / chip.flops, memory_bytes / chip.memory_bandwidth, sent_bytes / chip.interconnect,
        sent_between_slices / chip.network,
    )  # fmt: skip


def chip_of(topology: str) -> Chip:
    """Return the kind of chip in a topology such as `v5e:16x16` or `h100:8`.

    Raises:
      UserError: the chip is unknown, or the topology has no size.
    """
    name, _, sides = topology.partition(":")
    if name not in CHIPS or not sides:
        raise UserError(
            f"unknown topology '{topology}'; expected a chip ({', '.join(CHIPS)}) with the sides (and number) of TPU "
            f"slices, or with the nodes and GPUs of a cluster, {_examples(TPU, CUDA)}"
        )
    return CHIPS[name]


def slice_devices(topology: str) -> list[Any]:
    """Return descriptions of the devices of a slice such as `v5e:16x16`, or of several (`v5e:16x16:2`), for a mesh.

    Must be called before any other use of JAX, since it sets the platform of this process to the CPU.

    Raises:
      UserError: the topology is unknown, or the compiler is not installed.
    """
    compiler = chip_of(topology).compiler
    for module in compiler.modules:
        if not _installed(module):
            raise UserError(
                f"{compiler.name} ({module}) is not installed; install the extra '{compiler.extra}': "
                f"python -m uv pip install --python .venv -c constraints.txt -e '.[{compiler.extra}]' "
                f"(no {compiler.accelerator} is needed)"
            )
    for name, value in compiler.environment.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return compiler.describe(*topology.split(":", 1))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"topology '{topology}' does not exist ({reason}); try {_examples(compiler)}") from None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package of `module` is missing
        return False


def _examples(*compilers: Compiler) -> str:
    *most, last = [example for compiler in compilers for example in compiler.examples]
    return f"such as {', '.join(most)} or {last}"
