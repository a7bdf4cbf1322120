"""TPU generations whose compiler runs without a TPU: what their makers state about them, and slices of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from crossearth_jax.config import UserError


class Chip(NamedTuple):
    """Peak numbers of one chip."""

    flops: float  # per second, bfloat16
    memory: float  # bytes of HBM
    memory_bandwidth: float  # bytes per second
    interconnect: float  # bytes per second that a chip can send to its neighbours: half of the bidirectional number
    source: str


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(197e12, 16e9, 819e9, 400e9 / 2, "https://cloud.google.com/tpu/docs/v5e"),
    "v6e": Chip(918e12, 32e9, 1638e9, 800e9 / 2, "https://cloud.google.com/tpu/docs/v6e"),
    "v5p": Chip(459e12, 95e9, 2765e9, 1200e9 / 2, "https://cloud.google.com/tpu/docs/v5p"),
}


# Read by libtpu when it is loaded: it looks for no TPU, several processes may compile at once, and it says little.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class Roofline(NamedTuple):
    """Least seconds of a step for each of a chip's limits; the largest bounds the step."""

    compute: float
    memory: float
    interconnect: float


def roofline(chip: Chip, flops: float, memory_bytes: float, sent_bytes: float) -> Roofline:
    """Divides what one chip has to do by what it can do at best."""
    return Roofline(flops / chip.flops, memory_bytes / chip.memory_bandwidth, sent_bytes / chip.interconnect)


def slice_devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a slice such as `v5e:16x16`, good for a mesh to compile for.

    Call it before JAX is used for anything else: this process then computes on the CPU.

    Raises:
      UserError: the name is unknown, or the TPU compiler is not installed.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS or ":" not in topology:
        raise UserError(
            f"unknown topology '{topology}'; expected a generation ({', '.join(CHIPS)}) and the sides of a slice, such "
            "as v5e:2x4, v6e:16x16 or v5p:4x8x8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler (libtpu) is not installed; install the extra 'tpu': pip install -e '.[tpu]' (no TPU is "
            "needed)"
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"topology '{topology}' does not exist ({reason}); try v5e:2x4, v6e:16x16 or v5p:4x8x8"
        ) from None
