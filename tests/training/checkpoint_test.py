"""Properties: a restored state is the saved one; what does not belong together is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crossearth_jax import parallel
from crossearth_jax.config import Config, EvaluateConfig, MeshConfig, OptimizerConfig, TrainConfig, UserError
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


def identity(config=CONFIG, **frozen):
    return RunIdentity(config, "".join(frozen.values()), frozen)


@pytest.fixture(scope="module")
def saved_on_eight(tmp_path_factory):
    """A folder with step 3, saved from eight devices, and that state."""
    directory = tmp_path_factory.mktemp("checkpoints")
    saved, _, _ = make_state(parallel.make_mesh(MeshConfig(data=2, fsdp=4)))
    saved = saved._replace(step=jnp.int32(3))
    checkpoints = Checkpoints(directory, 2, identity(backbone="abc"))
    checkpoints.save(saved)
    checkpoints.close()
    return directory, saved


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 2, 1), (1, 2, 2), (1, 1, 1)])
def test_restoring_on_other_meshes_and_fewer_devices_is_exact(saved_on_eight, axes):
    directory, saved = saved_on_eight
    data, fsdp, model = axes
    devices = jax.devices()[: data * fsdp * model]
    mesh = parallel.make_mesh(MeshConfig(data=data, fsdp=fsdp, model=model), devices)
    _, shapes, shardings = make_state(mesh, seed=1)
    restored = Checkpoints(directory, 2, identity(backbone="abc")).restore(shapes, shardings)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert restored.trainable["reins/tokens_b"].sharding == shardings.trainable["reins/tokens_b"]


def test_a_checkpoint_holds_the_trainable_state_and_the_digests_of_the_rest(saved_on_eight):
    manager = ocp.CheckpointManager(saved_on_eight[0])
    stored = manager.restore(3, args=ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()))
    assert set(stored.keys()) == {"state", "meta"}
    assert {path.name for path in (saved_on_eight[0] / "3").iterdir() if path.is_dir()} == {"state", "meta"}
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(stored["state"])}
    assert not [name for name in names if "backbone" in name]
    # Parameters, their average and two moments; the step of the run, of Adam and of the schedule.
    assert len(names) == 4 * len(SHAPES) + 3
    assert stored["meta"]["frozen"] == {"backbone": "abc"}
    assert stored["meta"]["config"]["seed"] == CONFIG.seed


def test_other_configuration_or_backbone_is_refused_with_the_difference(tmp_path):
    saved, shapes, shardings = make_state(parallel.make_mesh(MeshConfig()))
    checkpoints = Checkpoints(tmp_path, 2, identity(a="1", b="2"))
    checkpoints.save(saved)
    checkpoints.close()
    longer = dataclasses.replace(CONFIG, train=TrainConfig(steps=40_000))
    Checkpoints(tmp_path, 2, identity(longer, a="1", b="2")).restore(shapes, shardings)
    other = dataclasses.replace(CONFIG, seed=43)
    with pytest.raises(UserError, match="seed: 42 -> 43"):
        Checkpoints(tmp_path, 2, identity(other, a="1", b="2")).restore(shapes, shardings)
    with pytest.raises(UserError, match=r"other frozen weights \(b: 2 -> 3; c: absent -> 4\); point train\.init_from"):
        Checkpoints(tmp_path, 2, identity(a="1", b="3", c="4")).restore(shapes, shardings)


def test_the_best_on_source_is_kept_beside_the_newest(tmp_path):
    saved, _, _ = make_state(parallel.make_mesh(MeshConfig()))
    config = dataclasses.replace(CONFIG, evaluate=EvaluateConfig(select="best_on_source"))
    checkpoints = Checkpoints(tmp_path, 2, identity(config))
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 30.0)):
        checkpoints.save(saved._replace(step=jnp.int32(step)), score)
    checkpoints.close()
    # Opened again, as by a resumed run: scores are read back, of equals the later one wins and the earlier goes.
    checkpoints = Checkpoints(tmp_path, 2, identity(config))
    assert (checkpoints.selected("best_on_source"), checkpoints.selected("last")) == (4, 4)
    for step, score in ((5, 5.0), (6, 29.0), (7, 1.0)):
        checkpoints.save(saved._replace(step=jnp.int32(step)), score)
    checkpoints.wait()
    assert checkpoints.steps == [4, 6, 7]
    assert (checkpoints.selected("best_on_source"), checkpoints.selected("last")) == (4, 7)
    checkpoints.close()


def test_without_scores_there_is_no_best(saved_on_eight, tmp_path):
    with pytest.raises(UserError, match=r"was scored on the source; train with evaluate\.select=best_on_source"):
        Checkpoints(saved_on_eight[0], 2, identity()).selected("best_on_source")
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        Checkpoints(tmp_path / "none", 2, identity()).selected("last")
