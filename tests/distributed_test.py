"""Real runs of several processes: two of four devices do what one of eight does, and leave one run's folder.

Every process is started as on a cluster, with `--distributed`; JAX joins them over the loopback interface.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.kill_and_resume import complete_saves
from crossearth_jax import evaluate, train
from crossearth_jax.models.segmentor import SegmentationModel

SETTING = "temperate_green2temperate_brown"
SCORED = ("water", "forest", "shrub_grass", "cropland")  # of the source in its own domain
STEPS = 3
# The command itself, except that it fits no baselines: they have tests of their own.
MAIN = """
from crossearth_jax import baselines, command, main

baselines.confusions = lambda *_: {}
command.run(main.main)
"""


@pytest.fixture(scope="module")
def config(tiny_config):
    # Eight groups draw the same styles on every mesh. Adam divides by the gradient's own size, which would turn the
    # rounding noise of gradients that are truly zero into full steps; a larger epsilon leaves noise as small as it is.
    # Among points of equal uncertainty rounding would choose others for the mask losses; here all candidates are taken.
    return dataclasses.replace(
        tiny_config,
        loss=dataclasses.replace(tiny_config.loss, oversample=1.0, importance=1.0),
        style=dataclasses.replace(tiny_config.style, groups=8),
        optimizer=dataclasses.replace(tiny_config.optimizer, eps=1e-2, learning_rate=1e-3, accumulate=1),
        evaluate=dataclasses.replace(tiny_config.evaluate, select="best_on_source", every=2, settings=(SETTING,)),
        train=dataclasses.replace(tiny_config.train, steps=STEPS, checkpoint_every=2, keep_checkpoints=1),
    )


@pytest.fixture(scope="module")
def experiment(config, write_experiment, tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("distributed"), config)


def start(experiment, workdir):
    """Starts two processes and returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    together = ["--distributed", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    command = [sys.executable, "-c", MAIN, f"--config={experiment}", f"--workdir={workdir}", *together]
    return [
        subprocess.Popen([*command, f"--process_id={i}"], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]


def outputs(processes):
    try:
        return [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_processes(experiment, tmp_path_factory):
    """A run of two processes from its start to the report."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    processes = start(experiment, workdir)
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return workdir, errors, complete_saves(workdir)


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory):
    """The same run in this process, on eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    return train.train(config, workdir, evaluate.validate), workdir


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-5, err_msg=name)


def assert_same_losses(found, expected):
    assert [record["step"] for record in found] == [record["step"] for record in expected] == [1, 2, 3]
    names = [name for name in expected[0] if name.startswith("loss")]
    assert len(names) > 4 and any("styled" in name for name in names)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose([a[n] for n in names], [b[n] for n in names], atol=1e-5, rtol=1e-5)


def test_two_processes_train_as_one_does(config, one_process, two_processes):
    run, workdir = one_process
    assert_same_losses(logged(two_processes[0]), logged(workdir))
    # What two processes have saved is restored by one.
    last = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, select="last"))
    restored = train.restore(last, two_processes[0])
    assert int(restored.state.step) == STEPS
    assert_close(restored.state.trainable, run.state.trainable)
    assert_close(restored.state.average, run.state.average)


def test_two_processes_score_as_one_does(config, one_process, two_processes):
    run, workdir = one_process
    found, expected = (
        {r["step"]: r["validation/miou"] for r in logged(folder) if "validation/miou" in r}
        for folder in (two_processes[0], workdir)
    )
    assert [*found] == [*expected] == [2, 3]  # every second step, and after the last
    # Scores of pixels that tie to rounding may fall either way.
    np.testing.assert_allclose([*found.values()], [*expected.values()], atol=0.05)
    best = train.restore(config, two_processes[0])
    step = int(best.state.step)
    assert step == (2 if found[2] > found[3] else 3)
    assert two_processes[2] == {step, STEPS}  # the newest, of which one is to be kept, and the best
    row = json.loads((two_processes[0] / "results.json").read_text())[SETTING]
    assert row["checkpoint_step"] == step
    assert row["protocol"].startswith("best checkpoint on the validation split of the source blue_marble/temp")
    names = evaluate.taxonomy(row["source"]).classes
    evaluator = evaluate.Evaluator(SegmentationModel(config.model), config.evaluate, run.program.mesh)
    with jax.set_mesh(run.program.mesh):
        alone = evaluator.domain(best.params, row["target"], "test", config.data.data_dir)
        seen = evaluator.domain(best.params, row["source"], "validation", config.data.data_dir).confusion
    iou = np.diag(seen) / np.maximum(seen.sum(0) + seen.sum(1) - np.diag(seen), 1)
    assert found[step] == pytest.approx(100 * iou[[names.index(name) for name in SCORED]].mean(), abs=0.05)
    written = np.load(two_processes[0] / "evaluation" / f"{SETTING}.npz")
    assert np.abs(written["confusion"] - alone.confusion).sum() <= 0.001 * alone.confusion.sum()
    np.testing.assert_array_equal(written["images"], alone.images)
    assert (written["predictions"] != alone.predictions).mean() <= 0.001


def test_the_first_process_writes_alone(two_processes):
    workdir, errors, _ = two_processes
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert (workdir / "report.html").exists()
    assert "report: " in errors[0] and "report: " not in errors[1]
    assert not list(workdir.rglob("*.tmp"))
