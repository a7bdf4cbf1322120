"""The metrics writer: the content of both files, and the records after an interruption and a resumption."""

import json
import struct
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from crossearth_jax.config import UserError
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
