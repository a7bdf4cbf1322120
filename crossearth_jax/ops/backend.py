"""Which kind of device the program being traced is for: the one place where formulations are chosen by it."""

from __future__ import annotations

import jax


def platform() -> str:
    """Names the platform that the current trace will run on: "cpu", "gpu" or "tpu".

    An active mesh (`jax.set_mesh`) knows its devices, also when the program is compiled on a CPU host for a TPU
    slice that is not there; without one it is JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device and device.platform else jax.default_backend()
