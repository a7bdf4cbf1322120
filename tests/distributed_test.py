"""Real runs of several processes: two processes with four devices each give the results of one with eight devices.

Every process is started as on a cluster, with `--distributed`; JAX connects them over the loopback interface.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks.kill_and_resume import complete_saves
from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.config import MeshConfig
from crossearth_jax.inference import evaluate, robustness
from crossearth_jax.inference.domains import score_domain
from crossearth_jax.inference.segmentor import load
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.training import loop
from crossearth_jax.training import start as training_start
from crossearth_jax.training.state import TrainState

SETTING = "temperate_green2temperate_brown"
SCORED = ("water", "forest", "shrub_grass", "cropland")  # classes scored in the in-domain setting of the source
STEPS = 3
SPLIT = MeshConfig(data=1, fsdp=4, model=2)  # parameters are split between processes
# The command itself with other baselines; the real ones are tested elsewhere.
MAIN = """
import functools, os, signal, time
import jax
from crossearth_jax import main
from crossearth_jax.analysis import baselines
from crossearth_jax.runtime import command

def confusions(*_):
    {baselines}

baselines.confusions = confusions
jax.distributed.initialize = functools.partial(jax.distributed.initialize, shutdown_timeout_seconds={limit})
command.run(main.main)
"""
QUICK = MAIN.format(baselines="return {}", limit=300)
# At the end of a run, JAX waits five minutes for the last process; here five seconds, while the baselines take fifteen.
SLOW = MAIN.format(baselines="time.sleep(15); raise RuntimeError('no baselines today')", limit=5)
KILLED = MAIN.format(baselines="time.sleep(15); os.kill(os.getpid(), signal.SIGKILL)", limit=5)


@pytest.fixture(scope="module")
def config(comparable_config):
    return dataclasses.replace(
        comparable_config,
        evaluate=dataclasses.replace(comparable_config.evaluate, select="best_on_source", every=2, settings=(SETTING,)),
        train=dataclasses.replace(comparable_config.train, checkpoint_every=2),
    )


@pytest.fixture(scope="module")
def experiment(config, write_experiment, tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("distributed"), config)


def start(experiment, workdir, *flags, program=QUICK):
    """Start two processes and return them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Only the first process uses JAX's compilation cache. It would wait for the second one to compile, longer than the
    # timeout of the CPU connections. Without a cache, both compile at the same time.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    together = ["--distributed", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    command = [sys.executable, "-c", program, f"--config={experiment}", f"--workdir={workdir}", *together, *flags]
    return [
        subprocess.Popen([*command, f"--process_id={i}"], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]


# Two shifts at two strengths are enough to test how the processes share the work.
FEW_SHIFTS = """
from crossearth_jax.augment.shifts import SHIFTS
from crossearth_jax.inference import robustness

robustness.SHIFTS, robustness.STRENGTHS = {name: SHIFTS[name] for name in ("haze", "shadow")}, (2, 5)
"""


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
    """Run two processes from the start to the report."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    processes = start(experiment, workdir)
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return workdir, errors, complete_saves(workdir)


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory):
    """Run the same training in this process, on eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    return loop.train(config, workdir, evaluate.validate), workdir


def test_two_processes_train_as_one_does(config, one_process, two_processes, assert_same_run):
    # One process restores the checkpoint of two.
    last = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, select="last"))
    restored = training_start.restore(last, two_processes[0])
    assert int(restored.state.step) == STEPS
    assert_same_run(restored, two_processes[0], *one_process)


def test_two_processes_score_as_one_does(config, one_process, two_processes):
    _, workdir = one_process
    found, expected = (
        {r["step"]: r["validation/miou"] for r in logged(folder) if "validation/miou" in r}
        for folder in (two_processes[0], workdir)
    )
    assert [*found] == [*expected] == [2, 3]  # every second step, and after the last
    # Pixels with nearly equal scores may get another class by floating-point rounding.
    np.testing.assert_allclose([*found.values()], [*expected.values()], atol=0.05)
    best = training_start.restore(config, two_processes[0])
    step = int(best.state.step)
    assert step == (2 if found[2] > found[3] else 3)
    assert two_processes[2] == {step, STEPS}  # the newest (one is kept) and the best
    row = json.loads((two_processes[0] / "results.json").read_text())[SETTING]
    assert row["checkpoint_step"] == step
    assert row["protocol"].startswith("best checkpoint on the validation split of the source blue_marble/temp")
    source, target = DOMAINS[row["source"]], DOMAINS[row["target"]]
    windows = load(two_processes[0]).sliding_windows(batch_size=config.evaluate.batch_size)
    alone = score_domain(windows, target, "test", config.data.data_dir, examples=config.evaluate.examples)
    seen = score_domain(windows, source, "validation", config.data.data_dir).confusion
    iou = np.diag(seen) / np.maximum(seen.sum(0) + seen.sum(1) - np.diag(seen), 1)
    assert found[step] == pytest.approx(100 * iou[[source.classes.index(name) for name in SCORED]].mean(), abs=0.05)
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


@pytest.fixture
def untrained(config, write_experiment, tmp_path):
    """Return an experiment and the folder of its run, with a checkpoint from before the first step."""
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, select="last"))
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, checkpoints = training_start.start(config, tmp_path / "run", mesh)
    checkpoints.save(run.state)
    checkpoints.close()
    write_json(tmp_path / "run" / "config.json", checkpoints.identity["config"])
    return write_experiment(tmp_path, config), tmp_path / "run"


def test_a_slow_addition_that_fails_takes_no_process_and_no_score_with_it(untrained):
    experiment, workdir = untrained
    processes = start(experiment, workdir, "--mode=evaluate", program=SLOW)
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    line = "left out: baselines (RuntimeError: no baselines today); the scores are complete"
    assert errors[0].count(line) == 1 and line not in errors[1]
    row = json.loads((workdir / "results.json").read_text())[SETTING]
    assert row["miou"] is not None and "baselines" not in row and row["style_distance"] > 0
    assert (workdir / "report.html").exists()


def test_a_process_that_is_killed_ends_the_other_and_leaves_the_scores(untrained):
    experiment, workdir = untrained
    processes = start(experiment, workdir, "--mode=evaluate", program=KILLED)
    processes[0].wait(timeout=900)
    killed = time.monotonic()
    outputs(processes)
    assert time.monotonic() - killed < 60
    assert processes[0].returncode == -signal.SIGKILL and processes[1].returncode != 0
    assert json.loads((workdir / "results.json").read_text())[SETTING]["miou"] is not None


@pytest.fixture(scope="module")
def split_between_processes(config, write_experiment, tmp_path_factory):
    """Train two processes with parameters that are sharded over both."""
    folder = tmp_path_factory.mktemp("split")
    experiment = write_experiment(folder, dataclasses.replace(config, mesh=SPLIT))
    processes = start(experiment, folder / "run", "--mode=train")
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "'data': 1, 'fsdp': 4, 'model': 2" in errors[0]
    return experiment, folder / "run"


def test_parameters_split_between_processes_train_the_same(
    config, one_process, split_between_processes, assert_same_run
):
    # Restored without the check of the frozen weights' digest: the random frozen weights of this test are drawn in
    # other shards, which changes their last bits. Frozen weights from files have the same bits on every mesh.
    workdir = split_between_processes[1]
    here = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), one_process[0].state)
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        restore = ocp.args.Composite(state=ocp.args.StandardRestore(here._asdict()))
        state = TrainState(**manager.restore(STEPS, args=restore)["state"])
    assert_same_run(SimpleNamespace(state=state), workdir, *one_process)


def test_a_signal_to_one_process_stops_both_at_the_same_step(split_between_processes):
    experiment, workdir = split_between_processes
    processes = start(experiment, workdir, "--mode=train", "--config.train.steps=40000")
    while len(logged(workdir)) < STEPS + 2 and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [143, 143], "\n".join(errors)
    assert all(f"restored step {STEPS} from" in error for error in errors)
    (first,), (second,) = ([line for line in e.splitlines() if line.startswith("stopped at step")] for e in errors)
    assert first == second
    step = int(first.split()[3])
    assert step in complete_saves(workdir) and logged(workdir)[-1]["step"] == step


def test_two_processes_score_shifts_as_one_does(config, experiment, two_processes, monkeypatch):
    workdir = two_processes[0]
    scored = (workdir / "results.json").read_text()
    processes = start(experiment, workdir, "--mode=evaluate", "--shifts", program=FEW_SHIFTS + QUICK)
    errors = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert (workdir / "results.json").read_text() == scored  # the targets are not scored again
    found = json.loads((workdir / "shifts.json").read_text())
    monkeypatch.setattr(robustness, "SHIFTS", {name: robustness.SHIFTS[name] for name in ("haze", "shadow")})
    monkeypatch.setattr(robustness, "STRENGTHS", (2, 5))
    (workdir / "shifts.json").unlink()
    alone = json.loads(robustness.score_shifts(config, workdir, load(workdir)).read_text())
    assert found["identity"] == alone["identity"]
    for name, shift in alone["shifts"].items():
        for strength, scores in shift["strengths"].items():
            assert found["shifts"][name]["strengths"][strength]["miou"] == pytest.approx(scores["miou"], abs=0.05)
    assert "Appearance shifts" in (workdir / "report.html").read_text()
