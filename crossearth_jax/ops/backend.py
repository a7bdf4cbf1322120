"""The platform that the program being traced will run on; operations choose their formulation by it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """Return the platform that the current trace will run on: "cpu", "gpu", "tpu" or "onnx" (an ONNX runtime).

    Inside `tracing_for` it is the platform given there. Otherwise, with an active mesh (`jax.set_mesh`), it is the
    platform of the mesh's devices, even if the program is compiled on a CPU host for a TPU slice that is not attached.
    Without a mesh it is JAX's default backend.
    """
    if (chosen := _chosen.get()) is not None:
        return chosen
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device and device.platform else jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Let operations that are traced in this block choose their formulation for a platform (see `platform`).

    A jitted function that was traced before keeps its formulation, so trace the plain function.
    """
    token = _chosen.set(platform)
    try:
        yield
    finally:
        _chosen.reset(token)
