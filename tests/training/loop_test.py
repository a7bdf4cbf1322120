"""Whole runs: exact resumption, the same numbers on any mesh, and faults that stop a run."""

import dataclasses
import gc
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossearth_jax
from crossearth_jax import benchmark, convert, replay
from crossearth_jax.config import MeshConfig, UserError
from crossearth_jax.runtime import command
from crossearth_jax.runtime.parallel import make_mesh
from crossearth_jax.training import loop, start
from crossearth_jax.training.styles import build_styles
from crossearth_jax.training.weights_file import ensure_exported

POISONED = "backbone/patch_embed/bias"


@pytest.fixture(scope="module")
def whole_run(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return loop.train(tiny_config, workdir, traced_steps=1), workdir


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def assert_same(first, second, **tolerance):
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def test_resumed_run_is_bit_identical(tiny_config, whole_run, tmp_path):
    loop.train(with_train(tiny_config, steps=2), tmp_path)
    resumed = loop.train(tiny_config, tmp_path)
    assert_same(whole_run[0].state._asdict()["trainable"], resumed.state.trainable)
    assert_same(whole_run[0].state.average, resumed.state.average)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_restored_run_is_the_trained_one(tiny_config, whole_run):
    run, workdir = whole_run
    assert_same(run.params, start.restore(tiny_config, workdir).params)


def test_the_file_of_a_run_is_all_that_inference_needs(tiny_config, whole_run, tmp_path):
    run, workdir = whole_run
    shutil.copyfile(workdir / "model.safetensors", tmp_path / "model.safetensors")  # no checkpoints, config or data
    model = crossearth_jax.load(tmp_path)
    network = {name: value for name, value in run.params.items() if not name.startswith(("style/", "mim/"))}
    assert network.keys() == model.params.keys()
    assert_same(network, model.params)
    assert model.class_names == benchmark.TAXONOMIES["blue_marble"].classes
    described = model.description
    assert (model.window, model.stride, described.bands) == (16, 11, ("red", "green", "blue"))
    assert (described.trained_on, described.step, described.selection) == (tiny_config.data.source, 4, "last")
    convert.main([str(tmp_path), str(tmp_path / "run.safetensors")])
    again = crossearth_jax.load(tmp_path / "run.safetensors")
    assert_same(network, again.params)
    assert again.description == described
    with pytest.raises(UserError, match=r"its model\.safetensors is complete; leave out config"):
        crossearth_jax.load(workdir, config=tiny_config.model)


def test_a_run_of_an_older_version_is_exported_when_it_is_loaded(whole_run, tmp_path):
    shutil.copytree(whole_run[1], tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    assert_same(crossearth_jax.load(tmp_path / "old").params, crossearth_jax.load(whole_run[1]).params)
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == (whole_run[1] / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor config\.json"):
        crossearth_jax.load(tmp_path)


def test_step_compiles_once(whole_run):
    assert whole_run[0].program.step._cache_size() == 1


@pytest.mark.filterwarnings("ignore:builtin type event_stats has no __module__ attribute:DeprecationWarning")
def test_the_chosen_steps_are_traced(whole_run):
    """Three of four steps come first without a trace."""
    _, workdir = whole_run
    (file,) = (workdir / loop.PROFILE_FOLDER).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))  # its parts are only valid as long as it exists
    events = (event for plane in data.planes for line in plane.lines for event in line.events)
    assert [dict(event.stats)["step_num"] for event in events if event.name == "train"] == [3]


def test_training_moves_the_trainable_and_only_them(tiny_config, whole_run):
    initial = jax.jit(whole_run[0].program.model.init)(jax.random.key(tiny_config.seed))
    state, frozen = whole_run[0].state, whole_run[0].frozen
    assert all(name.startswith(("backbone/", "style/")) for name in frozen)
    for name, value in state.trainable.items():
        assert not np.array_equal(value, initial[name]), name
    for name in set(frozen) & set(initial):
        np.testing.assert_array_equal(frozen[name], initial[name])


def poison(monkeypatch, *steps):
    """Compute the loss and gradient of the given steps with a frozen parameter that is NaN."""
    build = start.build_program

    def poisoned_program(*args, **kwargs):
        program = build(*args, **kwargs)

        def poisoned(function):
            def call(state, frozen, batch):
                if int(jax.device_get(state.step)) in steps:
                    with jax.transfer_guard("allow"):
                        frozen = frozen | {POISONED: frozen[POISONED].at[0].set(np.nan)}
                return function(state, frozen, batch)

            return call

        return dataclasses.replace(program, step=poisoned(program.step), gradients=poisoned(program.gradients))

    monkeypatch.setattr(start, "build_program", poisoned_program)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_step_that_is_not_finite_stops_the_run_and_can_be_replayed(tiny_config, tmp_path, monkeypatch, capsys):
    saved = tmp_path / "nonfinite_step_3.npz"
    with monkeypatch.context() as patch:
        poison(patch, 3)
        with pytest.raises(UserError, match=r"step 3 was not finite and the run stopped; .*replay .*step_3.npz'"):
            loop.train(tiny_config, tmp_path)
        assert np.load(saved)["image"].shape == (16, 64, 64, 3)
        assert saved_steps(tmp_path) == [2]  # not step 4, which would have been saved just after the fault
        assert replay.main([str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "step 3, replayed on 8 devices" in printed
    assert "loss is nan" in printed and re.search(r"loss/mask\S* is nan", printed)
    assert "gradients not finite in" in printed and "parameters not finite" not in printed
    # Without the fault the step is finite in the replay.
    assert replay.main([str(saved)]) == 1
    assert capsys.readouterr().out == "step 3, replayed on 8 devices\n"
    with pytest.raises(UserError, match=r"cannot read .*config\.json.*expected a nonfinite_step_N\.npz"):
        replay.main([str(tmp_path / "config.json")])


def test_steps_that_are_not_finite_are_skipped_and_counted(tiny_config, whole_run, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        poison(patch, 1)
        run = loop.train(with_train(tiny_config, nonfinite="skip", steps=2), tmp_path)
    assert "1 steps were skipped and 0 corrupt records were replaced since this start" in caplog.text
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["nonfinite"] for record in records] == [0, 1]
    # The skipped step has not changed the parameters.
    one = loop.train(with_train(tiny_config, steps=1), tmp_path / "one")
    assert_same(run.state.trainable, one.state.trainable)


def test_the_best_checkpoint_on_the_source_is_the_one_restored(tiny_config, whole_run, tmp_path):
    config = dataclasses.replace(
        tiny_config, evaluate=dataclasses.replace(tiny_config.evaluate, select="best_on_source", every=1)
    )
    scores = iter([10.0, 30.0, 20.0, 5.0])
    config = with_train(config, keep_checkpoints=1)
    run = loop.train(config, tmp_path, lambda config, params: next(scores))
    assert saved_steps(tmp_path) == [2, 4]
    restored = start.restore(config, tmp_path)
    assert int(restored.state.step) == 2
    exported = crossearth_jax.load(tmp_path)
    assert (exported.description.step, exported.description.selection) == (2, "best_on_source")
    assert_same(exported.params, {name: restored.params[name] for name in exported.params})
    last = start.restore(tiny_config, tmp_path)
    assert_same(run.params, last.params)
    # Evaluation with another selection than that of the file writes the file again.
    other = crossearth_jax.load(ensure_exported(tmp_path, "last"))
    assert (other.description.step, other.description.selection) == (4, "last")
    assert_same(other.params, {name: last.params[name] for name in other.params})
    assert_same(whole_run[0].params, last.params)  # validation does not change the training
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["validation/miou"] for record in records] == [10.0, 30.0, 20.0, 5.0]
    with pytest.raises(UserError, match=r"evaluate\.select is 'best', expected one of last, best_on_source"):
        bad = dataclasses.replace(config.evaluate, select="best")
        loop.train(dataclasses.replace(config, evaluate=bad), tmp_path)


def test_other_model_in_the_run_folder_is_refused(tiny_config, whole_run):
    model = dataclasses.replace(tiny_config.model, classes=4)
    with pytest.raises(UserError, match=r"model.classes: 5 -> 4"):
        start.restore(dataclasses.replace(tiny_config, model=model), whole_run[1])


def test_folder_without_checkpoint_cannot_be_evaluated(tiny_config, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        start.restore(tiny_config, tmp_path)


@pytest.fixture
def damaged_run(tiny_config, whole_run, tmp_path):
    """Copies the finished run, with its configuration, and damages the checkpoints of the steps given."""

    def damage(how, *steps):
        workdir = tmp_path / "run"
        shutil.copytree(whole_run[1], workdir)
        assert (workdir / "config.json").exists()
        for step in steps:
            how(workdir / "checkpoints" / str(step))
        return workdir

    yield damage
    gc.collect()  # reads that orbax gave up end here, each with a complaint


def without_meta(checkpoint):
    shutil.rmtree(checkpoint / "meta")


def with_halved_data(checkpoint):
    for path in checkpoint.glob("state/**/d/*"):
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [without_meta, with_halved_data])
def test_a_run_whose_newest_checkpoint_is_damaged_continues_exactly(tiny_config, whole_run, damaged_run, caplog, how):
    workdir = damaged_run(how, 4)
    resumed = loop.train(tiny_config, workdir)
    assert re.search(r"checkpoint 4 is damaged or incomplete \(.+\); step 2 is used", caplog.text)
    assert_same(whole_run[0].state._asdict()["trainable"], resumed.state.trainable)
    assert_same(whole_run[0].state.average, resumed.state.average)
    assert saved_steps(workdir) == [2, 4]
    assert [path.name for path in (workdir / "damaged_checkpoints").iterdir()] == ["4"]  # nothing is deleted
    assert_same(resumed.params, start.restore(tiny_config, workdir).params)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_evaluation_and_prediction_use_the_newest_whole_checkpoint(tiny_config, damaged_run, caplog):
    workdir = damaged_run(with_halved_data, 4)
    run = start.restore(tiny_config, workdir)
    assert int(run.state.step) == 2
    (workdir / "model.safetensors").unlink()  # as a run of an older version
    model = crossearth_jax.load(workdir)
    assert model.description.step == 2
    assert_same(model.params, {name: run.params[name] for name in model.params})
    assert caplog.text.count("; step 2 is used") == 2
    assert saved_steps(workdir) == [2, 4]  # reading moves nothing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_without_a_whole_checkpoint_is_refused(tiny_config, damaged_run, tmp_path, capsys):
    workdir = damaged_run(without_meta, 2, 4)
    (workdir / "model.safetensors").unlink()  # as a run of an older version
    for use in (loop.train, start.restore):
        with pytest.raises(UserError, match=r"no checkpoint in \S+ can be read \(step 4: .*; step 2: .*\), expected"):
            use(tiny_config, workdir)
    with pytest.raises(SystemExit) as end:
        command.run(convert.main, [str(workdir), str(tmp_path / "out.safetensors")])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "no checkpoint in" in line
    assert saved_steps(workdir) == [2, 4]


def test_signal_saves_and_the_run_continues_exactly(tiny_config, whole_run, tmp_path, monkeypatch):
    build = start.build_program

    def interrupted(*args, **kwargs):
        program = build(*args, **kwargs)

        def step(state, frozen, batch):
            if int(jax.device_get(state.step)) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return program.step(state, frozen, batch)

        return dataclasses.replace(program, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(start, "build_program", interrupted)
        with pytest.raises(loop.Stopped, match="stopped at step 3") as stopped:
            loop.train(tiny_config, tmp_path)
    assert stopped.value.exit_code == 143
    assert_same(whole_run[0].state.trainable, loop.train(tiny_config, tmp_path).state.trainable)


def test_batch_that_does_not_divide_is_refused(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, batch_size=12))
    with pytest.raises(UserError, match="choose a multiple of 16"):
        loop.train(config, tmp_path)


def test_mesh_is_made_of_all_devices():
    assert make_mesh(MeshConfig()).size == jax.device_count() == 8


def test_style_groups_that_do_not_divide_over_the_shards_are_refused(tiny_config):
    style = dataclasses.replace(tiny_config.style, groups=12)
    with pytest.raises(UserError, match=r"style\.groups is 12, expected a multiple of the 8 device shards"):
        build_styles(dataclasses.replace(tiny_config, style=style), 8)


@pytest.mark.parametrize(
    ("transfer", "mistake"),
    [
        ("host-to-device", lambda batch: jnp.square(np.ones(3))),
        ("device-to-host", lambda batch: np.asarray(batch["index"])),
    ],
)
def test_a_transfer_that_nobody_asked_for_ends_the_loop(tiny_config, tmp_path, monkeypatch, transfer, mistake):
    build = start.build_program

    def careless(*args, **kwargs):
        program = build(*args, **kwargs)

        def step(state, frozen, batch):
            mistake(batch)
            return program.step(state, frozen, batch)

        return dataclasses.replace(program, step=step)

    monkeypatch.setattr(start, "build_program", careless)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"Disallowed {transfer} transfer"):
        loop.train(with_train(tiny_config, steps=1), tmp_path)
    assert not (tmp_path / "metrics.jsonl").read_text()
