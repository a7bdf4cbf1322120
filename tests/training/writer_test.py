"""The metrics writer: the content of both files, and the records after an interruption and a resumption."""

import importlib
import json
import struct
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from crossearth_jax.config import Config, TrainConfig, UserError
from crossearth_jax.config_check import check_config
from crossearth_jax.training import writer as writer_module
from crossearth_jax.training.writer import MetricsWriter


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Return (tag, value, step) of every scalar; the file consists of records of length, crc, data, crc."""
    found, first_steps = [], []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            found += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
            if event.session_log.status == event.session_log.START:
                first_steps.append(event.step)
    return found, first_steps


def test_both_files_hold_the_numbers(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(50, {"loss": np.float32(2.5), "learning_rate": 1e-4})
        writer.write(100, {"loss": jnp.float32(1.25), "images_per_second": 80})
        on_disk = records(tmp_path / "run")  # before closing: a killed run keeps its log
    assert [{k: v for k, v in record.items() if k != "time"} for record in on_disk] == [
        {"step": 50, "loss": 2.5, "learning_rate": 1e-4},
        {"step": 100, "loss": 1.25, "images_per_second": 80.0},
    ]
    found, _ = events(tmp_path / "run")
    expected = [
        ("loss", 2.5, 50),
        ("learning_rate", 1e-4, 50),
        ("loss", 1.25, 100),
        ("images_per_second", 80, 100),
    ]
    assert [(tag, step) for tag, _, step in found] == [(tag, step) for tag, _, step in expected]
    np.testing.assert_allclose([v for _, v, _ in found], [v for _, v, _ in expected], rtol=1e-7)


def test_not_a_number_is_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan"), "norm": float("inf")})
    assert records(tmp_path)[0]["loss"] is None and records(tmp_path)[0]["norm"] is None


def test_resume_drops_what_is_repeated_and_a_cut_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (50, 100, 150):
            writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "lo')
    with MetricsWriter(tmp_path, restored_step=100) as writer:
        writer.write(150, {"loss": -1.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(50, 50), (100, 100), (150, -1)]
    assert 101 in events(tmp_path)[1]  # TensorBoard hides the events of older files from this step on
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_fresh_start_discards_old_records(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 50}\n')
    MetricsWriter(tmp_path).close()
    assert records(tmp_path) == []


def test_full_disk_is_named(tmp_path):
    full = r"metrics\.jsonl: No space left on device; make room"
    with pytest.raises(UserError, match=full), MetricsWriter(tmp_path) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "a")
        writer.write(1, {"loss": 1.0})


def test_speed_is_of_the_interval_between_records(tmp_path, monkeypatch):
    times = iter([1060.0, 1064.0, 1066.0])
    clock = SimpleNamespace(time=lambda: next(times))
    monkeypatch.setattr("crossearth_jax.training.writer.time", clock)
    with MetricsWriter(tmp_path, images_per_step=8) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": 1.0})
    assert [record.get("images_per_second") for record in records(tmp_path)] == [None, 20.0, 40.0]


def test_other_processes_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", active=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def write_in_two_starts(workdir, name):
    """Write steps 10 and 20, go on after step 10, write steps 20 and 30; return the id of the run."""
    config = {"seed": 42, "train": {"steps": 30}}
    with MetricsWriter(workdir, dashboards=(name,), config=config) as writer:
        writer.write(10, {"loss": 2.5, "validation/miou": 40.0})
        writer.write(20, {"loss": 1.5})
    with MetricsWriter(workdir, 10, dashboards=(name,), config=config) as writer:
        writer.write(20, {"loss": 1.5})
        writer.write(30, {"loss": float("nan")})
    return json.loads((workdir / "dashboards.json").read_text())[name]


def history_of(path):
    """Return (step, loss) of the records of W&B's offline file.

    After a header of 7 bytes the file is a log of blocks of 32 KiB, as that of LevelDB. A record has checksum, length
    and kind before its data: 1 for a whole record, 2, 3 and 4 for first, middle and last part of one over several
    blocks. Less than 7 bytes at the end of a block are padding.
    """
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, block, record, found = path.read_bytes(), 7, 32 * 1024, b"", []
    while at + 7 <= len(data):
        if (left := block - at % block) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        record = part if kind in (1, 2) else record + part
        if kind in (1, 4):
            values = {
                "/".join(item.nested_key) or item.key: item.value_json
                for item in proto.Record.FromString(record).history.item
            }
            if values:
                found.append((int(values["_step"]), float(values["loss"])))
        at += 7 + length
    return found


def test_wandb_offline_continues_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = write_in_two_starts(tmp_path / "run", "wandb")
    first, second = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run}.wandb"))
    assert history_of(first) == [(10, 2.5), (20, 1.5)]
    (repeated, (step, loss)) = history_of(second)
    assert repeated == (20, 1.5) and step == 30 and np.isnan(loss)


def test_mlflow_folder_continues_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = write_in_two_starts(tmp_path / "run", "mlflow")
    client = importlib.import_module("mlflow").MlflowClient()
    found = client.get_run(run)
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params == {"seed": "42", "train.steps": "30"}
    assert [(m.step, m.value) for m in client.get_metric_history(run, "validation/miou")] == [(10, 40.0)]
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run, "loss")]
    assert losses[:-1] == [(10, 2.5), (20, 1.5), (20, 1.5)] and losses[-1][0] == 30 and np.isnan(losses[-1][1])


def test_a_dashboard_that_fails_later_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    class Broken:
        def __init__(self, workdir, config, run_id):
            self.id = "1"

        def write(self, step, numbers, time):
            raise ConnectionError("the server is gone")

        def close(self):
            raise AssertionError("the dashboard is no longer used")

    monkeypatch.setitem(writer_module._DASHBOARDS, "mlflow", Broken)
    with MetricsWriter(tmp_path, dashboards=("mlflow",)) as writer:
        for step in (1, 2):
            writer.write(step, {"loss": 1.0})
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    assert caplog.text.count("mlflow receives no more metrics of this start: the server is gone") == 1


def test_a_dashboard_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    with pytest.raises(
        UserError, match=r"^mlflow cannot record the run \(.*nowhere.*\); correct its settings, or leave"
    ):
        MetricsWriter(tmp_path, dashboards=("mlflow",))


def test_unknown_and_missing_dashboards_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"train\.dashboards has 'aim', expected names of mlflow, wandb"):
        check_config(Config(name="x", train=TrainConfig(dashboards=("aim",))))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"wandb is not installed; train\.dashboards=\('wandb',\) needs the extra wandb: "
    ):
        check_config(Config(name="x", train=TrainConfig(dashboards=("wandb",))))
