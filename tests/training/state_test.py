"""The memory per device that a run logs."""

import jax
import jax.numpy as jnp
import pytest

from crossearth_jax.config import MeshConfig
from crossearth_jax.runtime import parallel
from crossearth_jax.training.state import log_memory


@pytest.mark.parametrize(("fsdp", "size"), [(1, "3.0"), (4, "1.5")])
def test_bytes_of_each_device_are_logged(fsdp, size, caplog):
    mesh = parallel.make_mesh(MeshConfig(fsdp=fsdp))
    # 2 MiB that fsdp splits, 1 MiB that it does not.
    shapes = {
        "head/mask_decoder/layers/0/mlp/fc1/kernel": jax.ShapeDtypeStruct((256, 2048), jnp.float32),
        "head/mask_decoder/class_head/kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32),
    }
    axes = dict(zip(shapes, [("embed", "mlp"), ()], strict=True))
    with caplog.at_level("INFO"):
        log_memory(mesh, shapes, parallel.param_shardings(mesh, shapes, axes), "training state")
    mesh_text = {"data": 8 // fsdp, "fsdp": fsdp, "model": 1}
    assert caplog.records[-1].getMessage() == f"training state: {size} MiB on each of 8 devices, mesh {mesh_text}"
