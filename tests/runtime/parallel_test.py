"""Mesh and shardings on eight virtual devices."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from crossearth_jax.config import MeshConfig, UserError
from crossearth_jax.runtime import parallel


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


def test_param_shardings_split_what_divides_and_keep_the_rest_whole():
    mesh = parallel.make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    shapes = {
        "backbone/blocks/attention/qkv/kernel": jax.ShapeDtypeStruct((3, 8, 24), jnp.float32),
        "backbone/blocks/mlp/fc1/kernel": jax.ShapeDtypeStruct((3, 6, 16), jnp.float32),
        "head/mask_decoder/class_head/kernel": jax.ShapeDtypeStruct((8, 7), jnp.float32),
    }
    axes = dict(zip(shapes, [("layers", "embed", "heads"), ("layers", "embed", "mlp"), ()], strict=True))
    shardings = parallel.param_shardings(mesh, shapes, axes)
    assert shardings["backbone/blocks/attention/qkv/kernel"].spec == PartitionSpec(None, "fsdp", "model")
    assert shardings["backbone/blocks/mlp/fc1/kernel"].spec == PartitionSpec(None, None, "model")
    assert shardings["head/mask_decoder/class_head/kernel"].spec == PartitionSpec()
    expected = 4 * (3 * 2 * 12 + 3 * 6 * 8 + 8 * 7)
    assert parallel.bytes_per_device(shapes, shardings) == expected


def test_dimensions_that_stay_whole_are_named(caplog):
    mesh = parallel.make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    name = "backbone/blocks/mlp/fc1/kernel"
    with caplog.at_level("INFO"):
        parallel.param_shardings(
            mesh, {name: jax.ShapeDtypeStruct((3, 6, 15), jnp.float32)}, {name: ("layers", "embed", "mlp")}
        )
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: 6 is not divisible by fsdp=4, this dimension is not split",
        f"{name}: 15 is not divisible by model=2, this dimension is not split",
    ]


@pytest.mark.parametrize("config", [MeshConfig(data=2, fsdp=4), MeshConfig(data=2, fsdp=2, model=2)])
def test_activations_stay_with_their_images_and_parameters_are_gathered_for_use(config):
    mesh = parallel.make_mesh(config)
    name, shape = "reins/delta/kernel", jax.ShapeDtypeStruct((64, 64), jnp.float32)
    axes = {name: ("embed", None)}
    sharding = parallel.param_shardings(mesh, {name: shape}, axes)[name]

    def apply(params, x):
        x = parallel.split_by_batch(x @ parallel.whole_for_use(params, axes)[name])
        return parallel.split_by_batch(jnp.tanh(x))

    with jax.set_mesh(mesh):
        weights = jax.random.normal(jax.random.key(0), shape.shape)
        images = jax.random.normal(jax.random.key(1), (8, 64))
        expected = jnp.tanh(images @ weights)
        arguments = {name: jax.device_put(weights, sharding)}, jax.device_put(images, parallel.batch_sharding(mesh))
        compiled = jax.jit(apply).lower(*arguments).compile()
        np.testing.assert_allclose(compiled(*arguments), expected, rtol=1e-5, atol=1e-5)
    text = compiled.as_text()
    assert "f32[64,64]" in text and "all-gather(" in text
    assert not any(operation in text for operation in ("all-reduce(", "all-to-all(", "collective-permute("))


def test_without_a_mesh_nothing_is_pinned():
    x = jnp.ones((3, 4))
    assert parallel.split_by_batch(x) is x
    assert parallel.whole_for_use({"any": x}, {"any": ()}) == {"any": x}
    with jax.set_mesh(parallel.make_mesh(MeshConfig())):
        assert parallel.split_by_batch(x) is x  # three images do not divide over eight devices
        assert parallel.per_shard(parallel.split_by_batch)(jnp.ones((8, 4))).shape == (8, 4)


def test_global_batch_puts_rows_in_order():
    mesh = parallel.make_mesh(MeshConfig(data=4, fsdp=2))
    batch = parallel.global_batch({"image": np.arange(16).reshape(16, 1)}, mesh)["image"]
    assert batch.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert [int(shard.data[0, 0]) for shard in batch.addressable_shards] == list(range(0, 16, 2))


def mesh_over_processes(shape, owners):
    """Return a mesh whose devices, in its order, belong to the given processes."""
    mesh = mock.Mock(spec=Mesh, shape=dict(zip(("data", "fsdp", "model"), shape, strict=True)))
    devices = np.empty(len(owners), object)
    devices[:] = [SimpleNamespace(process_index=owner) for owner in owners]
    mesh.devices = devices.reshape(shape)
    return mesh


@pytest.mark.parametrize(
    ("shape", "owners", "parts"),
    [
        ((4, 2, 1), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
        ((2, 2, 2), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
        (
            (4, 1, 1),
            [1, 0, 0, 1],
            [(1, 2), (0, 2)],
        ),  # a mesh in the order of the physical connections instead of the indices
        ((1, 1, 4), [0, 0, 1, 1], [(0, 1), (0, 1)]),  # both hold all rows
        ((2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_processes_read_the_rows_that_their_devices_hold(monkeypatch, shape, owners, parts):
    mesh = mesh_over_processes(shape, owners)
    found = []
    for process in range(len(parts)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(parallel.input_shard(mesh))
    assert found == parts


def test_processes_with_half_the_same_rows_are_refused():
    with pytest.raises(UserError, match="gives processes unequal or overlapping parts of the batch"):
        parallel.input_shard(mesh_over_processes((3, 1, 2), [0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, model=2)])
def test_fetching_gathers_what_is_split(mesh):
    rows = np.arange(24).reshape(8, 3)
    array = parallel.global_batch({"x": rows}, parallel.make_mesh(mesh))["x"]
    np.testing.assert_array_equal(parallel.fetch(array), rows)


def test_counts_above_32_bits_are_summed_whole(monkeypatch):
    counts = [np.array([[2**33 + 5, 0], [7, 2**31]]), np.array([[2**34, 1], [3, 2**31 + 1]])]
    np.testing.assert_array_equal(parallel.sum_over_processes(counts[0]), counts[0])  # one process

    def gather(halves):  # what JAX does with an array of 32 bits of every process
        assert halves.dtype == np.int32
        return np.stack([halves, np.ascontiguousarray(counts[1])[..., None].view(np.int32)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", gather)
    np.testing.assert_array_equal(parallel.sum_over_processes(counts[0]), counts[0] + counts[1])


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
