"""The steps of a small run, compiled with the real TPU compiler, and the errors of the command."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from crossearth_jax.aot.chips import CHIPS, roofline
from crossearth_jax.aot.compile import compiler_failure, memory_failure
from crossearth_jax.aot.compile_table import compile_table
from crossearth_jax.config import MeshConfig


def run(*arguments, config="configs/blue_marble.py"):
    command = [sys.executable, "-m", "crossearth_jax.main", f"--config={config}", "--mode=compile"]
    # The compiler is loaded in a separate process, because this one has initialised its backend already.
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=dict(os.environ), timeout=1200)


@pytest.fixture(scope="module")
def compiled(tiny_config, write_experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compiled")
    model = dataclasses.replace(tiny_config.model, dtype="bfloat16")
    config = dataclasses.replace(tiny_config, model=model, mesh=MeshConfig(fsdp=2))
    done = run("--topology=v5e:2x4", f"--workdir={workdir}", config=write_experiment(workdir, config))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((workdir / "compile.json").read_text()), workdir, done.stdout


def test_steps_compile_for_a_tpu_slice_with_explained_collectives_only(compiled):
    records, workdir, printed = compiled
    assert [(r["step"], r["chips"], r["mesh"], r["images_per_chip"]) for r in records] == [
        ("train", 8, {"data": 4, "fsdp": 2, "model": 1}, 2),
        ("evaluate", 8, {"data": 4, "fsdp": 2, "model": 1}, 2),
    ]
    for record in records:
        assert record["unexplained"] == []
        assert 0 < record["hbm"]["total"] < record["hbm"]["capacity"] == 16e9
    train, evaluate = records
    # Training gathers split parameters and sums their gradients. In evaluation each device scores its own windows.
    assert train["sent"]["all-reduce"] > 0 and train["sent"]["all-gather"] > 0
    assert evaluate["sent"] == {}
    assert train["flops"] > evaluate["flops"] > 0
    assert "train on v5e:2x4 (8 chips, 2 images each)" in printed
    assert (workdir / "compile.md").read_text() == compile_table(records)


def test_state_is_donated_on_the_tpu(compiled):
    train = compiled[0][0]
    # The new state uses the buffers of the old one. Only the metrics are not aliased.
    assert 0 <= train["hbm"]["outputs"] - train["hbm"]["aliased"] < 64 * 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x4"], "error: unknown topology 'v9:2x4'; expected a chip (v5e, v6e, v5p, h100, a100)"),
        (["--topology=v5e:3x5"], "error: topology 'v5e:3x5' does not exist"),
        (["--topology=v5e:2x4:0"], "error: topology 'v5e:2x4:0' does not exist (expected the sides of a slice and opt"),
        (["--topology=v6e:16x32"], "error: topology 'v6e:16x32' does not exist (a side has at most 16 chips; "),
        ([], "error: --mode=compile needs --topology"),
        (["--topology=v5e:2x4", "--batch_per_chip=0"], "error: flag --batch_per_chip=0"),
    ],
)
def test_wrong_slices_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)


def test_only_data_is_split_between_slices():
    program = """
from crossearth_jax.aot.chips import slice_devices
from crossearth_jax.config import MeshConfig, UserError
from crossearth_jax.runtime.parallel import make_mesh, slice_count

devices = slice_devices("v5e:2x4:2")
for config in (MeshConfig(), MeshConfig(fsdp=2, model=4)):
    mesh = make_mesh(config, devices)
    first = {device.slice_index for device in mesh.devices[: mesh.shape["data"] // 2].ravel()}
    print(*mesh.devices.shape, slice_count(mesh.devices), first)
try:
    make_mesh(MeshConfig(fsdp=16), devices)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "16 1 1 2 {0}",
        "2 2 4 2 {0}",
        "mesh (data, fsdp, model) = (1, 16, 1) does not fit 2 TPU slices, between which only gradients are summed; "
        "choose data as a multiple of 2",
    ]


def test_memory_that_is_missing_is_named():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.30G of 15.75G hbm. Exceeded by 5.5G."
    assert compiler_failure(message) == "needs 21.30G of 15.75G HBM"
    assert compiler_failure("INTERNAL: no\nmore") == "INTERNAL: no"


def test_steps_too_large_for_a_gpu_fail_although_its_compiler_lets_them_pass():
    assert memory_failure(90.0 * 2**30, CHIPS["h100"]) == {"failure": "needs 90.00G of 74.51G HBM"}
    assert memory_failure(80e9, CHIPS["h100"]) == {}
    # The TPU compiler knows the usable memory better than the rounded number of the specification.
    assert memory_failure(15.0 * 2**30, CHIPS["v5e"]) == {}


def test_roofline_divides_by_the_peaks():
    bound = roofline(CHIPS["v5e"], flops=197e9, memory_bytes=819e6, sent_bytes=200e6, sent_between_slices=3.125e6)
    assert bound == pytest.approx((1e-3, 1e-3, 1e-3, 1e-3))
    assert roofline(CHIPS["h100"], 1.0, 1.0, 1.0).network == 0
