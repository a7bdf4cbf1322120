"""Properties: a restored state is the saved one; what does not belong together is refused."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax import parallel
from crossearth_jax.config import Config, MeshConfig, OptimizerConfig, TrainConfig, UserError
from crossearth_jax.training import state
from crossearth_jax.training.checkpoint import Checkpoints, RunIdentity
from crossearth_jax.training.optimizer import make_optimizer

CONFIG = Config(name="test", optimizer=OptimizerConfig(ema=0.99))
SHAPES = {
    "reins/tokens_b": jax.ShapeDtypeStruct((2, 4, 16), jnp.float32),
    "head/mask_decoder/class_head/bias": jax.ShapeDtypeStruct((7,), jnp.float32),
}


def make_state(mesh, seed=0):
    optimizer = make_optimizer(CONFIG.optimizer, SHAPES)
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    params = {n: jax.random.normal(k, s.shape) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}
    made = state.create_state(params, optimizer, averaged=True)
    shapes = jax.eval_shape(lambda: made)
    shardings = state.state_shardings(mesh, shapes, parallel.param_shardings(mesh, SHAPES))
    return jax.device_put(made, shardings), shapes, shardings


def iterator():
    return iter(grain.MapDataset.range(50).shuffle(7).repeat().batch(5).to_iter_dataset())


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 4, 1), (1, 8, 1)])
def test_round_trip_between_meshes_is_exact_and_the_iterator_goes_on(tmp_path, axes):
    data, fsdp, model = axes
    saved, _, _ = make_state(parallel.make_mesh(MeshConfig()))
    saved = saved._replace(step=jnp.int32(3))
    first = iterator()
    consumed = [next(first) for _ in range(3)]
    checkpoints = Checkpoints(tmp_path, 2, RunIdentity(CONFIG, "abc"))
    checkpoints.save(saved, first)
    checkpoints.close()
    expected = next(first)

    mesh = parallel.make_mesh(MeshConfig(data=data, fsdp=fsdp, model=model))
    _, shapes, shardings = make_state(mesh, seed=1)
    second = iterator()
    restored = Checkpoints(tmp_path, 2, RunIdentity(CONFIG, "abc")).restore(shapes, shardings, second)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert restored.trainable["reins/tokens_b"].sharding == shardings.trainable["reins/tokens_b"]
    np.testing.assert_array_equal(next(second), expected)
    assert len(consumed) == 3


def test_other_configuration_or_backbone_is_refused_with_the_difference(tmp_path):
    saved, shapes, shardings = make_state(parallel.make_mesh(MeshConfig()))
    checkpoints = Checkpoints(tmp_path, 2, RunIdentity(CONFIG, "abc"))
    checkpoints.save(saved, iterator())
    checkpoints.close()
    longer = dataclasses.replace(CONFIG, train=TrainConfig(steps=40_000))
    Checkpoints(tmp_path, 2, RunIdentity(longer, "abc")).restore(shapes, shardings)
    other = dataclasses.replace(CONFIG, seed=43)
    with pytest.raises(UserError, match="seed: 42 -> 43"):
        Checkpoints(tmp_path, 2, RunIdentity(other, "abc")).restore(shapes, shardings)
    with pytest.raises(UserError, match=r"frozen weights abc, found\s+def"):
        Checkpoints(tmp_path, 2, RunIdentity(CONFIG, "def")).restore(shapes, shardings)
