"""The platform that the program being traced will run on; operations choose their formulation by it."""

from __future__ import annotations

import jax


def platform() -> str:
    """Return the platform that the current trace will run on: "cpu", "gpu" or "tpu".

    With an active mesh (`jax.set_mesh`) it is the platform of the mesh's devices, even if the program is compiled on a
    CPU host for a TPU slice that is not attached. Without a mesh it is JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device and device.platform else jax.default_backend()
