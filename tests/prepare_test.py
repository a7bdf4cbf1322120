"""Preparation is atomic, repeatable, and verifies the result."""

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from crossearth_data.blue_marble import blue_marble_dataset_builder

from crossearth_jax.benchmark import DOMAINS, IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory
from crossearth_jax.prepare import check_split, domains_named, main, prepare

DOMAIN = "blue_marble/temperate_brown"
KILLED_AFTER_TWENTY_TILES = f"""
import itertools, os, signal, sys
from crossearth_data.blue_marble import blue_marble_dataset_builder as builder
from crossearth_jax.prepare import prepare

count, encode = itertools.count(), builder._png
def encode_or_die(pixels):
    if next(count) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(pixels)
builder._png = encode_or_die
prepare("{DOMAIN}", sys.argv[1])
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepare a dataset after a first attempt was killed during the writing."""
    folder = tmp_path_factory.mktemp("prepared")
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_TWENTY_TILES, str(folder)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list((folder / DOMAIN).glob("incomplete.*"))  # it had begun to write
    with pytest.raises(UserError, match="not prepared"):
        dataset_directory(DOMAIN, folder)
    assert prepare(DOMAIN, folder) == dataset_directory(DOMAIN, folder)
    assert [path.name for path in (folder / DOMAIN).iterdir()] == ["1.0.0"]
    return folder


def test_a_running_preparation_is_left_alone(tmp_path):
    prepare(DOMAIN, tmp_path)
    running = tmp_path / DOMAIN / "incomplete.ABCDEF_1.0.0"
    running.mkdir()
    lock = os.open(tmp_path / DOMAIN, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    prepare(DOMAIN, tmp_path)
    assert running.exists()
    os.close(lock)
    prepare(DOMAIN, tmp_path)
    assert not running.exists()


def test_preparing_without_file_locks(tmp_path, monkeypatch, caplog):
    """Files that another preparation may be writing are reported and kept."""
    running = tmp_path / DOMAIN / "incomplete.ABCDEF_1.0.0"
    running.mkdir(parents=True)
    monkeypatch.setattr("crossearth_jax.prepare.fcntl", None)
    prepare(DOMAIN, tmp_path)
    assert running.exists() and dataset_directory(DOMAIN, tmp_path).exists()
    assert f"{running} is from another preparation; if none is running, delete it" in caplog.text


def test_preparing_where_the_module_of_locks_is_missing(tmp_path):
    code = "import sys; sys.modules['fcntl'] = None\nfrom crossearth_jax.prepare import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, DOMAIN, f"--data_dir={tmp_path}"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert dataset_directory(DOMAIN, tmp_path).exists()


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_repeating_changes_nothing(data_dir):
    directory = dataset_directory(DOMAIN, data_dir)
    before = contents(directory)
    assert prepare(DOMAIN, data_dir) == directory
    assert main([DOMAIN, f"--data_dir={data_dir}"]) == 0
    assert contents(directory) == before


def test_preparing_is_deterministic(data_dir, tmp_path):
    prepare(DOMAIN, tmp_path)
    first, second = PreparedSplit(DOMAIN, "train", data_dir), PreparedSplit(DOMAIN, "train", tmp_path)
    assert [first[i]["id"] for i in range(62)] == [second[i]["id"] for i in range(62)]
    for index in (0, 61):
        np.testing.assert_array_equal(first[index]["image"], second[index]["image"])


def test_the_first_of_two_processes_wins(data_dir, tmp_path, monkeypatch):
    encode, target = blue_marble_dataset_builder._png, tmp_path / DOMAIN / "1.0.0"

    def encode_while_another_finishes(pixels):
        if not target.exists():
            shutil.copytree(dataset_directory(DOMAIN, data_dir), target)
        return encode(pixels)

    monkeypatch.setattr(blue_marble_dataset_builder, "_png", encode_while_another_finishes)
    assert prepare(DOMAIN, tmp_path) == target
    assert [path.name for path in (tmp_path / DOMAIN).iterdir()] == ["1.0.0"]
    assert check_split(DOMAINS[DOMAIN], "train", tmp_path).faults == []


def test_check_reports_numbers(data_dir, capsys):
    report = check_split(DOMAINS[DOMAIN], "test", data_dir)
    assert (report.images, report.warnings, dict(report.sizes)) == (19, [], {(32, 32): 19})
    assert report.histogram.sum() == 19 * 32 * 32 and report.histogram[5:IGNORE].sum() == 0
    assert report.unknown == [] and report.faults == []
    assert main([DOMAIN, f"--data_dir={data_dir}", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "temperate_brown train: 62 images (64x64: 62) ok" in printed
    assert "test: 19 images (32x32: 19) ok\n  water 12.1%, forest 16.0%, shrub_grass 58.0%, cropland 13.8%" in printed


def test_check_finds_unknown_labels_and_sizes(data_dir, monkeypatch):
    read = PreparedSplit.__getitem__

    def altered(self, index):
        example = read(self, index)
        label = example["label"].copy()
        label[0, :3] = (7, 9, 9)
        return {**example, "label": np.pad(label, [(0, 1), (0, 0)]) if index == 4 else label}

    monkeypatch.setattr(PreparedSplit, "__getitem__", altered)
    report = check_split(DOMAINS[DOMAIN], "test", data_dir)
    assert report.unknown == [7, 9]
    assert report.histogram[[7, 9]].tolist() == [19, 38]
    assert report.faults == ["unknown label values [7, 9]", "sizes [(33, 32)] are above (32, 32)"]
    with pytest.raises(UserError, match=r"not as expected: blue_marble/temperate_brown train, .*test; delete"):
        main([DOMAIN, f"--data_dir={data_dir}", "--check"])


@pytest.fixture
def damaged(data_dir, tmp_path):
    """Return a copy of the prepared dataset that a test can damage."""
    directory = dataset_directory(DOMAIN, data_dir)
    copy = tmp_path / DOMAIN / directory.name
    copy.mkdir(parents=True)
    for path in directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_truncated_file_is_found(damaged, tmp_path):
    (shard,) = damaged.glob("*-validation.array_record*")
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(
        UserError, match=r"split validation: record 0 cannot be read \(it is empty\); delete .*1\.0\.0 and"
    ):
        prepare(DOMAIN, tmp_path)


def test_a_missing_file_is_found(damaged, tmp_path):
    for path in damaged.glob("*-test.array_record*"):
        path.unlink()
    with pytest.raises(UserError, match=r"split test: record 0 cannot be read .*No such file.*delete .*1\.0\.0 and"):
        prepare(DOMAIN, tmp_path)


def test_a_folder_without_description_is_found(damaged, tmp_path):
    (damaged / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"1\.0\.0 has no dataset_info\.json.*delete the folder"):
        prepare(DOMAIN, tmp_path)


def test_unexpected_counts_are_a_warning_or_an_error(damaged, tmp_path, monkeypatch, caplog, capsys):
    del damaged
    counts = {**DOMAINS[DOMAIN].counts, "validation": 18}
    monkeypatch.setitem(DOMAINS, DOMAIN, dataclasses.replace(DOMAINS[DOMAIN], counts=counts))
    message = "split validation has 17 images, expected 18"
    prepare(DOMAIN, tmp_path)
    assert [record.levelname for record in caplog.records if message in record.getMessage()] == ["WARNING"]
    with pytest.raises(UserError, match=f"{message}; delete the folder"):
        prepare(DOMAIN, tmp_path, strict=True)
    assert main([DOMAIN, f"--data_dir={tmp_path}", "--check"]) == 0
    assert "validation: 17 images (32x32: 17)\n  warning: 18 images expected\n  water" in capsys.readouterr().out
    with pytest.raises(UserError, match="not as expected: blue_marble/temperate_brown validation"):
        main([DOMAIN, f"--data_dir={tmp_path}", "--check", "--strict"])


def test_an_unwritable_folder_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be prepared in .*file.*choose another --data_dir"):
        prepare(DOMAIN, tmp_path / "file")


def test_names():
    assert domains_named(DOMAIN, "") == [DOMAIN]
    assert len(domains_named("blue_marble", "")) == 9
    with pytest.raises(UserError, match="unknown domain 'blue_marbles'"):
        domains_named("blue_marbles", "")


def test_exit_codes(tmp_path):
    command = [sys.executable, "-m", "crossearth_jax.prepare", "blue_marble/temperate_brown"]
    checked = subprocess.run([*command, f"--data_dir={tmp_path}", "--check"], capture_output=True, text=True)
    assert checked.returncode == 2
    assert checked.stderr.splitlines()[-1].startswith("error: blue_marble/temperate_brown is not prepared in")
