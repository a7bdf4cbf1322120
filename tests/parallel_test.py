"""Properties of mesh and shardings, on eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from crossearth_jax import parallel
from crossearth_jax.config import MeshConfig, UserError


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, model=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=1, model=8), (1, 1, 8)),
    ],
)
def test_mesh_takes_what_is_left(config, shape):
    assert tuple(parallel.make_mesh(config).shape.values()) == shape


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=2, fsdp=2)])
def test_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        parallel.make_mesh(config)


def test_every_mesh_axis_is_used_once_per_parameter():
    for name, logical in parallel.LOGICAL_AXES:
        axes = [parallel.MESH_AXES[axis] for axis in logical if axis and parallel.MESH_AXES[axis]]
        assert len(axes) == len(set(axes)), name


def test_param_shardings_split_what_divides_and_keep_the_rest_whole():
    mesh = parallel.make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    shapes = {
        "backbone/blocks/attention/qkv/kernel": jax.ShapeDtypeStruct((3, 8, 24), jnp.float32),
        "backbone/blocks/mlp/fc1/kernel": jax.ShapeDtypeStruct((3, 6, 16), jnp.float32),
        "head/mask_decoder/class_head/kernel": jax.ShapeDtypeStruct((8, 7), jnp.float32),
    }
    shardings = parallel.param_shardings(mesh, shapes)
    assert shardings["backbone/blocks/attention/qkv/kernel"].spec == PartitionSpec(None, "fsdp", "model")
    assert shardings["backbone/blocks/mlp/fc1/kernel"].spec == PartitionSpec(None, None, "model")
    assert shardings["head/mask_decoder/class_head/kernel"].spec == PartitionSpec()
    expected = 4 * (3 * 2 * 12 + 3 * 6 * 8 + 8 * 7)
    assert parallel.bytes_per_device(shapes, shardings) == expected


def test_global_batch_puts_rows_in_order():
    mesh = parallel.make_mesh(MeshConfig(data=4, fsdp=2))
    batch = parallel.global_batch({"image": np.arange(16).reshape(16, 1)}, mesh)["image"]
    assert batch.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert [int(shard.data[0, 0]) for shard in batch.addressable_shards] == list(range(0, 16, 2))


def test_per_example_equals_vmap_and_does_not_communicate():
    mesh = parallel.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    values = jnp.arange(32.0).reshape(8, 4)
    lifted = parallel.per_example(lambda x, y: (jnp.cumsum(x), y.max()))
    expected = jax.vmap(lambda x, y: (jnp.cumsum(x), y.max()))(values, -values)
    with jax.set_mesh(mesh):
        values = jax.device_put(values, parallel.batch_sharding(mesh))
        compiled = jax.jit(lifted).lower(values, -values).compile()
        text, result = compiled.as_text(), compiled(values, -values)
    for found, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert "all-" not in text
    assert "collective" not in text
