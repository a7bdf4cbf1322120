"""Checkpoints: a restored state equals the saved one; another configuration or other frozen weights are refused."""

import dataclasses
import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from crossearth_jax.config import Config, EvaluateConfig, MeshConfig, OptimizerConfig, TrainConfig, UserError
from crossearth_jax.runtime import parallel
from crossearth_jax.training import state
from crossearth_jax.training.checkpoint import Checkpoints, RunIdentity
from crossearth_jax.training.optimizer import make_optimizer

CONFIG = Config(name="test", optimizer=OptimizerConfig(ema=0.99, horizon=40_000))
SHAPES = {
    "reins/tokens_b": jax.ShapeDtypeStruct((2, 32, 64), jnp.float32),  # too large to be stored among the metadata
    "head/mask_decoder/class_head/bias": jax.ShapeDtypeStruct((7,), jnp.float32),
}
AXES = {"reins/tokens_b": (None, "rank", "embed"), "head/mask_decoder/class_head/bias": ()}


def make_state(mesh, seed=0):
    optimizer = make_optimizer(CONFIG.optimizer, CONFIG.horizon, SHAPES)
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    params = {n: jax.random.normal(k, s.shape) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}
    made = state.create_state(params, optimizer, averaged=True)
    shapes = jax.eval_shape(lambda: made)
    shardings = state.state_shardings(mesh, shapes, parallel.param_shardings(mesh, SHAPES, AXES))
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
    # Parameters, their moving average and two moments; the step counters of the run, of Adam and of the schedule.
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
    with pytest.raises(UserError, match=r"other frozen weights \(b: 2 -> 3; c: absent -> 4\); set train\.init_from"):
        Checkpoints(tmp_path, 2, identity(a="1", b="3", c="4")).restore(shapes, shardings)


def test_fields_that_an_earlier_version_lacked_have_their_defaults(saved_on_eight, tmp_path):
    shutil.copytree(saved_on_eight[0], tmp_path / "old")
    meta = tmp_path / "old" / "3" / "meta" / "metadata"
    stored = json.loads(meta.read_text())
    del stored["config"]["model"]["adapter"], stored["config"]["model"]["lora"]
    meta.write_text(json.dumps(stored))
    _, shapes, shardings = make_state(parallel.make_mesh(MeshConfig()))
    Checkpoints(tmp_path / "old", 2, identity(backbone="abc")).restore(shapes, shardings)
    changed = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, adapter="lora"))
    with pytest.raises(UserError, match=r"model\.adapter: rein -> lora"):
        Checkpoints(tmp_path / "old", 2, identity(changed, backbone="abc")).restore(shapes, shardings)


def test_a_schedule_that_follows_the_steps_is_not_stretched_in_the_middle(tmp_path):
    saved, shapes, shardings = make_state(parallel.make_mesh(MeshConfig()))
    follows = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(ema=0.99), train=TrainConfig(steps=100))
    checkpoints = Checkpoints(tmp_path, 2, identity(follows))
    checkpoints.save(saved._replace(step=jnp.int32(90)))
    checkpoints.close()
    set_later = dataclasses.replace(follows, optimizer=OptimizerConfig(ema=0.99, horizon=100))
    Checkpoints(tmp_path, 2, identity(set_later)).restore(shapes, shardings)
    longer = dataclasses.replace(follows, train=TrainConfig(steps=200))
    with pytest.raises(UserError, match=r"optimizer\.horizon: 100 -> 200"):
        Checkpoints(tmp_path, 2, identity(longer)).restore(shapes, shardings)
    # Evaluation may name fewer steps: training is finished, so the schedule does not matter.
    evaluated = dataclasses.replace(follows, train=TrainConfig(steps=80))
    Checkpoints(tmp_path, 2, identity(evaluated)).restore(shapes, shardings)


def test_the_best_on_source_is_kept_beside_the_newest(tmp_path):
    saved, _, _ = make_state(parallel.make_mesh(MeshConfig()))
    config = dataclasses.replace(CONFIG, evaluate=EvaluateConfig(select="best_on_source"))
    checkpoints = Checkpoints(tmp_path, 2, identity(config))
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 30.0)):
        checkpoints.save(saved._replace(step=jnp.int32(step)), score)
    checkpoints.close()
    # Opened again, as by a resumed run: scores are read back; of equal scores the later step is kept.
    checkpoints = Checkpoints(tmp_path, 2, identity(config))
    assert (checkpoints.ranked("best_on_source"), checkpoints.ranked("last")) == ([4, 3], [4, 3])
    for step, score in ((5, 5.0), (6, 29.0), (7, 1.0)):
        checkpoints.save(saved._replace(step=jnp.int32(step)), score)
    checkpoints.wait()
    assert checkpoints.steps == checkpoints.ranked("last") == [7, 6, 4]
    assert checkpoints.ranked("best_on_source") == [4, 6, 7]
    checkpoints.close()


def test_without_scores_there_is_no_best(saved_on_eight, tmp_path):
    with pytest.raises(UserError, match=r"was scored on the source; train with evaluate\.select=best_on_source"):
        Checkpoints(saved_on_eight[0], 2, identity()).ranked("best_on_source")
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        Checkpoints(tmp_path / "none", 2, identity()).ranked("last")


SCORED = dataclasses.replace(CONFIG, evaluate=EvaluateConfig(select="best_on_source"))
DAMAGES = {
    "missing": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    """A folder with steps 1 and 2, which differ in every number, their states, and how to read them again."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    mesh = parallel.make_mesh(MeshConfig(fsdp=8, data=1))
    states = {}
    checkpoints = Checkpoints(directory, 2, identity(SCORED))
    for step in (1, 2):
        made, shapes, shardings = make_state(mesh, seed=step)
        states[step] = made._replace(step=jnp.int32(step))
        checkpoints.save(states[step], float(step))
    checkpoints.close()
    return directory, states, shapes, shardings


@pytest.fixture
def damaged(two_saves, tmp_path):
    """Copies the folder and damages the files of step 2 that a pattern names; returns what reads the copy."""

    def damage(pattern, kind):
        copy = tmp_path / "checkpoints"
        shutil.copytree(two_saves[0], copy)
        found = list((copy / "2").glob(pattern))
        assert found
        for path in found:
            DAMAGES[kind](path)
        return Checkpoints(copy, 2, identity(SCORED))

    yield damage
    gc.collect()  # reads that orbax has abandoned end here, each with a warning


def files_below(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_same_state(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("meta", "missing"),
        ("state", "missing"),
        ("*", "missing"),
        ("state/d", "missing"),
        ("state/ocdbt.process_0", "missing"),
        *(
            (pattern, kind)
            for pattern in (
                "meta/metadata",
                "metrics/metrics",
                "state/_METADATA",
                "state/manifest.ocdbt",
                "state/d/*",
                "state/ocdbt.process_0/d/*",
            )
            for kind in DAMAGES
        ),
        *(("state/array_metadatas/process_0", kind) for kind in ("empty", "halved", "zeros")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(two_saves, damaged, tmp_path, caplog, pattern, kind):
    _, states, shapes, shardings = two_saves
    checkpoints = damaged(pattern, kind)
    assert_same_state(checkpoints.restore(shapes, shardings), states[1])
    (line,) = [record.getMessage() for record in caplog.records if "checkpoint 2" in record.getMessage()]
    assert "checkpoint 2 is damaged or incomplete (" in line and line.endswith("; step 1 is used") and "\n" not in line
    assert checkpoints.steps == [2, 1]  # reading does not change the folder
    # Training moves the damaged step 2 away, so that its own fits, and deletes nothing.
    left = files_below(tmp_path / "checkpoints" / "2")
    checkpoints.set_aside(1)
    assert checkpoints.steps == [1]
    assert files_below(tmp_path / "damaged_checkpoints" / "2") == left
    checkpoints.save(states[2], 2.0)
    checkpoints.close()
    assert_same_state(checkpoints.restore(shapes, shardings), states[2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_file_is_damaged_a_state_is_read_whole_or_not_at_all(two_saves, damaged, kind, tmp_path):
    directory, states, shapes, shardings = two_saves
    for file in sorted(path for path in (directory / "2").rglob("*") if path.is_file()):
        restored = damaged(str(file.relative_to(directory / "2")), kind).restore(shapes, shardings)
        assert_same_state(restored, states[int(restored.step)])
        shutil.rmtree(tmp_path / "checkpoints")
