"""The prepared accelerator run: results of failed and stopped stages, continuation, and its tables."""

import gzip
import json
import os
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import count_flops
from benchmarks.gpu import ours, pack, run, stage, tables, trace
from benchmarks.gpu.run import Run, Stage
from benchmarks.sizes import SIZES

# A stage with two records. At its first run, "slow" hangs before the second record and leaves a child process;
# "failing" ends with an error.
STAGE = """
import pathlib, subprocess, sys, time
from benchmarks.gpu.stage import Records, parser

made = parser("fake_stage")
made.add_argument("how")
arguments = made.parse_args()
records = Records(arguments.records)
if "first" not in records:
    records.add("first", value=1)
    if arguments.how == "slow":
        child = subprocess.Popen(["sleep", "600"])
        (arguments.scratch / "child").write_text(str(child.pid))
        time.sleep(600)
records.add("second", value=2)
sys.exit(3 if arguments.how == "failing" else 0)
"""


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Return (run, environment) with the module `fake_stage` importable."""
    monkeypatch.setattr(run, "LEAST_SECONDS", 0.1)
    (tmp_path / "fake_stage.py").write_text(STAGE)
    one = Run(tmp_path, "vit_l", 0, None)
    one.results.mkdir()
    one.scratch.mkdir()
    return one, os.environ | {"PYTHONPATH": f"{run.ROOT}{os.pathsep}{tmp_path}"}


def result(one, name):
    return json.loads((one.results / f"{name}.json").read_text())


def fake(how, seconds=60.0):
    return Stage(how, "fake_stage", (how,), seconds)


def started_in(seconds):
    return time.monotonic() + seconds


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z"  # Z: ended, but not yet reaped by its new parent


def test_a_stage_cut_off_leaves_its_records_and_the_next_start_goes_on_from_there(prepared):
    one, environment = prepared
    slow = fake("slow", seconds=5)
    run.run_stages(one, [slow], environment, started_in(5))
    found = result(one, "slow")
    assert found["outcome"] == "out of time" and found["seconds"] >= 4
    assert found["records"] == [{"name": "first", "value": 1}]
    child = int((one.scratch / "child").read_text())
    assert not alive(child)

    run.run_stages(one, [slow], environment, started_in(60))
    found = result(one, "slow")
    assert found["outcome"] == "complete"
    assert [record["name"] for record in found["records"]] == ["first", "second"]
    # The first record was not measured again.
    assert len((one.results / "slow.jsonl").read_text().splitlines()) == 2


def test_time_that_is_left_goes_to_stages_that_need_more(prepared):
    one, environment = prepared
    run.run_stages(one, [fake("slow", seconds=5), fake("quick")], environment, started_in(90))
    assert result(one, "slow")["outcome"] == result(one, "quick")["outcome"] == "complete"


def test_a_stage_that_fails_costs_no_other_and_is_tried_again_by_the_next_start(prepared):
    one, environment = prepared
    stages = [fake("failing"), fake("quick")]
    run.run_stages(one, stages, environment, started_in(60))
    assert [one.outcome(each) for each in stages] == ["failed", "complete"]
    before = (one.results / "quick.json").read_text()
    (one.results / "failing.json").unlink()
    run.run_stages(one, stages, environment, started_in(60))
    assert one.outcome(stages[0]) == "failed"
    assert (one.results / "quick.json").read_text() == before  # complete stages are skipped


def test_without_torch_its_stages_are_left_out(prepared):
    one, environment = prepared
    torch = Stage("theirs", "fake_stage", ("quick",), 60, torch=True)
    run.run_stages(one, [torch], environment, started_in(60))
    assert result(one, "theirs")["outcome"] == "left out"


def test_without_time_no_stage_is_started(prepared):
    one, environment = prepared
    run.run_stages(one, [fake("quick")], environment, started_in(0))
    assert list(one.results.iterdir()) == []


def test_results_are_also_one_table(prepared):
    one, environment = prepared
    run.run_stages(one, [fake("quick")], environment, started_in(60))
    lines = (one.results / "records.csv").read_text().splitlines()
    assert lines == ["stage,record,field,value", "quick,first,value,1", "quick,second,value,2"]
    assert not list(one.results.glob(".*"))  # nothing unfinished


def test_unknown_stages_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run.main(["everything", f"--out={tmp_path}"])
    assert error.value.code == 2 and "unknown stages: everything; known: machine, right" in capsys.readouterr().err


def test_stages_have_names_of_their_own_and_modules_that_exist():
    names = [each.name for each in run.STAGES]
    assert len(set(names)) == len(names)
    for each in run.STAGES:
        assert (run.ROOT / (each.module.replace(".", "/") + ".py")).exists()


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"name": "a", "x": 1}\n{"name": "b", "x"')
    records = stage.Records(path)
    assert "a" in records and "b" not in records
    records.add("b", x=2)
    assert stage.Records(path).found == {"a": {"name": "a", "x": 1}, "b": {"name": "b", "x": 2}}


def test_cases_in_order_of_worth():
    plan = stage.Plan((8, 1, None), 64, 4096, 12544, precisions=("bfloat16", "float32"))
    names = [case.name for case in stage.cases("step", 512, plan, ("eager", "compiled", "plain"))]
    assert names[:3] == ["step/512px/8/bfloat16/eager", "step/512px/8/float32/eager", "step/512px/8/bfloat16/compiled"]
    assert names[6] == "step/512px/1/bfloat16/eager" and names[-1] == "step/512px/largest/float32/compiled"
    assert len(names) == 6 + 4 + 4
    assert [case.side for case in stage.cases("predict", 512, plan, ("ours",))] == [4096, 4096]


@pytest.mark.parametrize(
    ("limit", "most", "expected"),
    [
        (51, 64, 48),  # 2 + 1 per image: 49 images, of which 48 are a multiple of 8
        (50, 32, 32),
        (9, 64, 8),  # even the larger known batch does not fit; it is tried nevertheless
        (1000, 64, 64),
    ],
)
def test_largest_batch_by_hand(limit, most, expected):
    assert stage.largest_batch({1: 3.0, 8: 10.0}, limit, most) == expected


def test_a_batch_that_does_not_fit_is_made_smaller(monkeypatch):
    tried = []

    def build(bench, case, batch):
        tried.append(batch)
        if batch > 30:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return batch

    monkeypatch.setattr(ours, "build", build)
    monkeypatch.setattr(ours, "largest", lambda *_: 64)
    bench = ours.Bench(SIZES["tiny"], stage.PLANS["vit_l"], {})
    case = stage.Case("step", 512, None, "bfloat16", "ours")
    assert ours.build_case(bench, None, case) == 27 and tried == [64, 48, 36, 27]
    with pytest.raises(jax.errors.JaxRuntimeError):
        ours.build_case(bench, None, stage.Case("step", 512, 40, "bfloat16", "ours"))  # a batch that is asked for


def test_a_measured_call_waits_for_its_work():
    waited = []
    found = stage.measure(lambda: time.sleep(0.002), waited.append, 0.05)
    assert 0.002 <= found["least"] <= found["seconds"] <= found["most"]
    assert len(waited) == 2 + stage.ROUNDS and found["calls"] % stage.ROUNDS == 0


def test_flops_by_hand():
    def program(a, b, image, kernel):
        def layer(x, _):
            return jnp.tanh(x @ b), None

        x, _ = jax.lax.scan(layer, a, length=3)
        layout = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout)
        one = jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ b, x)
        return one, convolved

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 7), (7, 7), (1, 4, 6, 2), (3, 3, 2, 8))]
    products, convolution = 4 * 2 * 5 * 7 * 7, 2 * 4 * 6 * 8 * 3 * 3 * 2
    assert count_flops(jax.jit(program).trace(*shapes).jaxpr) == products + convolution


def test_flops_of_a_gradient_are_three_times_those_of_the_product():
    def loss(a, b):
        return (a @ b).sum()

    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 7), (7, 3)))
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(a, b)
    assert count_flops(gradient.jaxpr) == 3 * 2 * 5 * 7 * 3


def write_trace(folder, processes, events):
    names = [{"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for pid, name in processes.items()]
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": names + events}, file)


def kernel(name, microseconds, pid, **more):
    return {"ph": "X", "name": name, "dur": microseconds, "pid": pid, "args": {"hlo_op": name} | more}


def test_costliest_kernels_of_a_gpu_leave_the_host_out(tmp_path):
    events = [kernel("gemm", 30, 1), kernel("gemm", 50, 1), kernel("copy", 20, 1), kernel("host_op", 900, 2)]
    events.append({"ph": "X", "name": "python", "dur": 500, "pid": 1, "args": {}})
    write_trace(tmp_path, {1: "/device:GPU:0", 2: "/host:CPU"}, events)
    found = trace.costliest(tmp_path, top=1)
    assert found["total"] == pytest.approx(1e-4)
    assert found["kernels"] == [
        {"kernel": "gemm", "calls": 2, "seconds": pytest.approx(8e-5), "share": pytest.approx(0.8)}
    ]


def test_a_real_trace_names_the_operations_of_a_program(tmp_path):
    product = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
    x = jnp.ones((256, 256))
    jax.block_until_ready(product(x))
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(product(x))
    found = trace.costliest(tmp_path)
    assert found["total"] > 0 and any("tanh" in one["kernel"] for one in found["kernels"])


def test_only_packages_that_are_not_installed_are_unpacked(tmp_path):
    packed = tmp_path / "packages.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("numpy/numpy/__init__.py", "an old numpy")
        file.writestr("no-such-package/no_such_package/part/__init__.py", "X = 1")
    run.unpack(packed, tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert files == [tmp_path / "site" / "no_such_package" / "part" / "__init__.py"]


def test_every_package_to_pack_is_pinned():
    pins = pack.pinned((run.ROOT / "constraints.txt").read_text("utf-8"))
    assert pins["jax"] == "0.12.0.1" and set(pack.PACKAGES) <= set(pins)


def test_the_page_is_what_the_results_give():
    tables.main(["--check"])


def write_results(folder, **stages):
    folder.mkdir(parents=True)
    for name, (outcome, records) in stages.items():
        found = [{"name": key, **record} for key, record in records.items()]
        content = {"stage": name, "outcome": outcome, "date": "2027-01-02", "records": found}
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_tables_by_hand(tmp_path):
    common = {"task": "step", "side": 512, "batch": 8, "precision": "bfloat16", "images": 8}
    ours = {**common, "variant": "ours", "seconds": 0.1, "bytes": 2**31, "flops": 4e12}
    compiled = {**common, "variant": "compiled", "seconds": 0.16, "bytes": 2**32}
    write_results(
        tmp_path / "h100",
        machine=("complete", {"jax": {"device": "NVIDIA H100"}, "versions": {"jax": "0.11.2"}}),
        ceilings=("complete", {"product/bfloat16": {"flops_per_second": 8e13}, "copy": {"bytes_per_second": 2e12}}),
        step_ours=("complete", {"step/512px/8/bfloat16/ours": ours}),
        step_torch=("out of time", {"step/512px/8/bfloat16/compiled": compiled}),
        parts=("complete", {"backbone": {"seconds": 0.05, "flops": 2e12, "bytes": 1e10}, "x": {"error": "no cudnn"}}),
    )
    text = "\n".join(tables.page_part(tmp_path))
    assert "### NVIDIA H100" in text and "jax 0.11.2, torch none" in text and "2027-01-02" in text
    assert "Not complete: step_torch (out of time)." in text
    # 80 and 50 images a second; 4e12 operations in 0.1 s are half of 8e13 a second.
    assert "| step | 512 | 8 | bfloat16 | 80 | 50 | - | - | 1.6 | 2 / 4 | 0.5 / 0.312 |" in text
    assert "| backbone | 50 | 25 | 5 | 0.5 |" in text and "| x | no cudnn | | | |" in text


def test_without_results_the_page_says_so(tmp_path):
    (line,) = tables.page_part(tmp_path)
    assert line.startswith("Not yet measured")
