"""Accelerators whose compilers run without them: what their makers state about them, and slices of them."""

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
    """Peak numbers of one chip."""

    compiler: Compiler
    flops: float  # per second, bfloat16, without sparsity
    memory: float  # bytes of HBM
    memory_bandwidth: float  # bytes per second
    interconnect: float  # bytes per second that a chip can send to its neighbours: half of the bidirectional number
    source: str
    network: float = math.inf  # bytes per second of a chip's share of the network between TPU slices; GPUs know none


CHIPS: Mapping[str, Chip] = {
    # The last number is stated for a pod of 256 chips of v5e and v6e, for a chip of v5p.
    "v5e": Chip(TPU, 197e12, 16e9, 819e9, 400e9 / 2, "https://cloud.google.com/tpu/docs/v5e", 6.4e12 / 8 / 256),
    "v6e": Chip(TPU, 918e12, 32e9, 1638e9, 800e9 / 2, "https://cloud.google.com/tpu/docs/v6e", 25.6e12 / 8 / 256),
    "v5p": Chip(TPU, 459e12, 95e9, 2765e9, 1200e9 / 2, "https://cloud.google.com/tpu/docs/v5p", 50e9 / 8),
    # SXM boards. NVIDIA states the arithmetic of the H100 with sparsity, twice what dense matrices get.
    "h100": Chip(CUDA, 1979e12 / 2, 80e9, 3350e9, 900e9 / 2, "https://www.nvidia.com/en-us/data-center/h100/"),
    "a100": Chip(CUDA, 312e12, 80e9, 2039e9, 600e9 / 2, "https://www.nvidia.com/en-us/data-center/a100/"),
}


class Roofline(NamedTuple):
    """Least seconds of a step for each of a chip's limits; the largest bounds the step."""

    compute: float
    memory: float
    interconnect: float
    network: float


def roofline(
    chip: Chip, flops: float, memory_bytes: float, sent_bytes: float, sent_between_slices: float = 0.0
) -> Roofline:
    """Divides what one chip has to do by what it can do at best."""
    return Roofline(
        flops / chip.flops, memory_bytes / chip.memory_bandwidth, sent_bytes / chip.interconnect,
        sent_between_slices / chip.network,
    )  # fmt: skip


def chip_of(topology: str) -> Chip:
    """The kind of chip that a topology such as `v5e:16x16` or `h100:8` is made of.

    Raises:
      UserError: there is none of this name, or the topology has no size.
    """
    name, _, sides = topology.partition(":")
    if name not in CHIPS or not sides:
        raise UserError(
            f"unknown topology '{topology}'; expected a chip ({', '.join(CHIPS)}) and the sides (and number) of TPU "
            f"slices or the nodes and GPUs of a cluster, {_examples(TPU, CUDA)}"
        )
    return CHIPS[name]


def slice_devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a slice such as `v5e:16x16`, or of several (`v5e:16x16:2`), for a mesh.

    Call it before JAX is used for anything else: this process then computes on the CPU.

    Raises:
      UserError: the name is unknown, or the compiler is not installed.
    """
    compiler = chip_of(topology).compiler
    for module in compiler.modules:
        if not _installed(module):
            raise UserError(
                f"{compiler.name} ({module}) is not installed; install the extra '{compiler.extra}': "
                f"pip install -e '.[{compiler.extra}]' (no {compiler.accelerator} is needed)"
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
    except ModuleNotFoundError:  # of a package that `module` is in
        return False


def _examples(*compilers: Compiler) -> str:
    *most, last = [example for compiler in compilers for example in compiler.examples]
    return f"such as {', '.join(most)} or {last}"
