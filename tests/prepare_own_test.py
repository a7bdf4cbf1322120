"""Preparation of a `domains.toml`: correct records, all or nothing, only changed domains again, one-line errors."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import shapely
import tensorflow_datasets as tfds
from crossearth_data.own import own_builder, plan  # pyright: ignore[reportMissingImports]
from miniatures import own
from PIL import Image

from crossearth_jax.benchmark.domains_file import read_domains_file
from crossearth_jax.benchmark.registry import find_domain, settings_from
from crossearth_jax.config import UserError
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.prepare import check_file, main, prepare_file

ROWS = """
images = "{0}i/*.png"
labels = "{0}l/*.png"
split = {{ by = "group", group = "(.)", test = ["3", "4"] }}
"""
TWO = f"[domains.a]{ROWS.format('')}\n[domains.b]{ROWS.format('b/')}"


@pytest.fixture
def two(tmp_path):
    """Return a file with two domains of four pictures each, and the folder for the prepared data."""
    own.pairs(tmp_path)
    for number in range(1, 5):
        own.picture(tmp_path / f"b/i/{number}.png", seed=10 + number)
        own.save(tmp_path / f"b/l/{number}.png", np.full((30, 40), number % 3, np.uint8))
    own.domains(tmp_path, TWO)
    return tmp_path / "domains.toml", tmp_path / "data"


def versions(data_dir):
    return sorted(str(path.parent.relative_to(data_dir)) for path in data_dir.glob("*/*/*/dataset_info.json"))


def test_records_and_facts_are_those_of_the_files(two):
    path, data_dir = two
    prepare_file(path, data_dir)
    source = PreparedSplit("domains/a", "test", data_dir)
    found = {source[index]["id"]: source[index] for index in range(len(source))}
    assert set(found) == {"3", "4"}
    np.testing.assert_array_equal(found["4"]["image"], np.asarray(Image.open(path.parent / "i/4.png")))
    np.testing.assert_array_equal(found["4"]["label"], np.asarray(Image.open(path.parent / "l/4.png")))
    facts = find_domain("domains/a", data_dir)
    assert facts.classes == ("building", "road", "land")
    assert (facts.counts, facts.eval_split) == ({"train": 2, "test": 2}, "test")
    assert facts.sizes == {"train": (30, 40), "test": (30, 40)}
    labels = [np.asarray(Image.open(path.parent / f"l/{number}.png")) for number in (1, 2)]
    assert facts.pixels["train"] == tuple(np.bincount(np.ravel(labels), minlength=3).tolist())
    assert facts.bands == ("red", "green", "blue")
    assert [setting.target for setting in settings_from("domains/a", data_dir)] == ["domains/a", "domains/b"]


def test_tfds_loads_it_without_the_builder(two):
    path, data_dir = two
    prepare_file(path, data_dir, ["b"])
    builder = tfds.builder("domains/b", data_dir=data_dir)
    assert builder.info.splits["train"].num_examples == 2
    source = tfds.data_source("domains/b", data_dir=data_dir, split="test")
    labels = {record["id"].decode(): set(np.unique(record["label"]).tolist()) for record in source}
    assert labels == {"3": {0}, "4": {1}}


def test_a_photograph_keeps_its_bytes(tmp_path):
    own.picture(tmp_path / "i/1.jpg")
    own.save(tmp_path / "l/1.png", np.zeros((30, 40), np.uint8))
    own.domains(tmp_path, 'images = "i/*.jpg"\nlabels = "l/*.png"')
    prepare_file(tmp_path / "domains.toml", tmp_path / "data")
    source = PreparedSplit("domains/x", "test", tmp_path / "data")
    np.testing.assert_array_equal(source[0]["image"], np.asarray(Image.open(tmp_path / "i/1.jpg")))
    (piece,) = plan.make_plan(read_domains_file(tmp_path / "domains.toml").domains["x"]).pieces["test"]
    assert plan.convert(piece).tiles[0].image == (tmp_path / "i/1.jpg").read_bytes()


def test_repeating_changes_nothing_and_a_change_concerns_its_domain_only(two, caplog):
    path, data_dir = two
    prepare_file(path, data_dir)
    times = {name: (data_dir / name / "dataset_info.json").stat().st_mtime_ns for name in versions(data_dir)}
    prepare_file(path, data_dir)
    assert times == {name: (data_dir / name / "dataset_info.json").stat().st_mtime_ns for name in versions(data_dir)}
    own.save(path.parent / "l/1.png", np.zeros((30, 40), np.uint8))
    own.picture(path.parent / "i/5.png")
    own.save(path.parent / "l/5.png", np.zeros((30, 40), np.uint8))
    own.domains(path.parent, TWO.replace('test = ["3", "4"]', 'test = ["4"]', 1))
    caplog.clear()
    prepare_file(path, data_dir)
    assert versions(data_dir) == ["domains/a/1.0.1", "domains/b/1.0.0"]
    assert find_domain("domains/a", data_dir).counts == {"train": 4, "test": 1}
    (said,) = [record.message for record in caplog.records if "input has changed" in record.message]
    assert said.startswith(
        "domains/a is prepared again because its input has changed: the key split; 2 new files such as "
    )
    assert said.endswith(f"1 changed files such as {path.parent / 'l/1.png'}")


def test_other_classes_prepare_everything_again(two):
    path, data_dir = two
    prepare_file(path, data_dir)
    own.domains(path.parent, TWO, '["building", "street", "land"]')
    prepare_file(path, data_dir)
    assert versions(data_dir) == ["domains/a/1.0.1", "domains/b/1.0.1"]


def test_a_fault_in_the_new_version_leaves_the_old_one(two):
    path, data_dir = two
    prepare_file(path, data_dir)
    own.save(path.parent / "l/4.png", np.full((30, 40), 9, np.uint8))
    with pytest.raises(UserError, match=r"l/4.png has the unknown label values 9"):
        prepare_file(path, data_dir)
    assert versions(data_dir) == ["domains/a/1.0.0", "domains/b/1.0.0"]
    assert not list(data_dir.rglob("incomplete.*"))


def test_prepared_data_serves_without_its_files(two, caplog):
    path, data_dir = two
    prepare_file(path, data_dir)
    (path.parent / "i").rename(path.parent / "elsewhere")
    prepare_file(path, data_dir, ["a"])
    assert any("the data prepared in" in record.message for record in caplog.records)
    own.domains(path.parent, TWO.replace('test = ["3", "4"]', 'test = ["4"]', 1))
    with pytest.raises(UserError, match="no file matches images"):
        prepare_file(path, data_dir, ["a"])


KILLED = """
import os, signal, sys
from crossearth_data.own import plan
from crossearth_jax.prepare import prepare_file
convert = plan.convert
def convert_or_die(piece):
    if piece.tiles[0][0] == "4":
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(piece)
plan.convert = convert_or_die
prepare_file(sys.argv[1], sys.argv[2])
"""


def test_killed_preparation_is_never_taken_for_a_whole_one(two):
    path, data_dir = two
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(data_dir)], env=os.environ, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL
    assert list(data_dir.glob("domains/a/incomplete.*"))
    assert versions(data_dir) == []
    prepare_file(path, data_dir)
    assert versions(data_dir) == ["domains/a/1.0.0", "domains/b/1.0.0"]
    assert not list(data_dir.glob("domains/a/incomplete.*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("copy", r"1 \(split train\) and 4 \(split test\) are the same image"),
        ("ignored", r"split test is empty: none of its tiles has a labelled pixel"),
        ("mask", r"the labels of split train hold only 0 and 255; if 255 is road, write labels = .*road = 255 \}"),
    ],
)
def test_splits_that_cannot_be_meant(two, change, expected):
    path, data_dir = two
    if change == "copy":
        (path.parent / "i/4.png").write_bytes((path.parent / "i/1.png").read_bytes())
    for number in (3, 4) if change == "ignored" else ():
        own.save(path.parent / f"l/{number}.png", np.full((30, 40), 255, np.uint8))
    for number in (1, 2) if change == "mask" else ():
        own.save(path.parent / f"l/{number}.png", np.array([[0, 255]], np.uint8).repeat(30, 0).repeat(20, 1))
    with pytest.raises(UserError, match=expected):
        prepare_file(path, data_dir)
    with pytest.raises(UserError, match="not as expected: domains/a"):
        check_file(path, data_dir)
    assert versions(data_dir) == []


def test_check_before_and_after_preparation_say_the_same(two, capsys):
    path, data_dir = two
    main([str(path), f"--data_dir={data_dir}", "--check"])
    before = capsys.readouterr().out.splitlines()
    assert before[0] == "domains/a is not prepared yet; the report describes its files"
    assert before[1] == "domains/a train: 2 images (30x40: 2) ok"
    assert before[3] == f"  images with their labels: {data_dir / 'domains/a_train.png'}"
    with Image.open(data_dir / "domains/a_test.png") as sheet:
        assert sheet.width > 400
    prepare_file(path, data_dir)
    main([str(path), f"--data_dir={data_dir}", "--check"])
    after = capsys.readouterr().out.splitlines()
    assert after == [line for line in before if "not prepared" not in line]
    own.save(path.parent / "l/1.png", np.zeros((30, 40), np.uint8))
    main([str(path), f"--data_dir={data_dir}", "--check"])
    assert capsys.readouterr().out.startswith("domains/a has changed since it was prepared: 1 changed files such as ")


def test_check_names_every_file_with_unknown_values(two, capsys):
    path, data_dir = two
    for number in (1, 4):
        own.save(path.parent / f"l/{number}.png", np.full((30, 40), 7, np.uint8))
    with pytest.raises(UserError, match="not as expected: domains/a train, domains/a test; see above"):
        check_file(path, data_dir)
    said = capsys.readouterr().out
    for number in (1, 4):
        assert (
            f"  fault: {path.parent / f'l/{number}.png'} has the unknown label values 7 (1200 pixels); expected 0"
            in said
        )


def test_near_duplicates_across_splits_are_a_warning(two, capsys):
    path, data_dir = two
    gradient = np.linspace(0, 255, 40)[None, :, None] * np.ones((30, 1, 3)) / 2
    waves = gradient + 40 * np.sin(np.arange(30) / 3)[:, None, None]
    own.save(path.parent / "i/1.png", waves.clip(0, 255).astype(np.uint8))
    own.save(path.parent / "i/4.png", (waves + 3).clip(0, 255).astype(np.uint8))
    check_file(path, data_dir)
    warning = r"  warning: 1 pairs of images in splits train and test look alike, such as 1 and 4;"
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.toml"], "error: cannot read "),
        (["{path}", "--manual_dir=x"], "itself names its files and options; leave out --manual_dir"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(two, arguments, expected):
    path, data_dir = two
    command = [sys.executable, "-m", "crossearth_jax.prepare", f"--data_dir={data_dir}"]
    ended = subprocess.run([*command, *(part.format(path=path) for part in arguments)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert expected in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_large_raster_is_never_read_as_a_whole(tmp_path, monkeypatch):
    """A window has at most sixteen tiles of one row."""
    values = np.random.default_rng(0).integers(0, 255, (3, 256, 2048), np.uint8)
    own.raster(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64)
    own.raster(tmp_path / "a_label.tif", values[:1] % 3, tiled=True, blockxsize=64, blockysize=64)
    own.domains(tmp_path, 'images = "a.tif"\nlabels = "a_label.tif"\ntile = 64')
    parts = []

    def convert(piece):
        found = whole(piece)
        parts.append(sum(height * width for height, width in found.sizes))
        return found

    whole = plan.convert
    monkeypatch.setattr(plan, "convert", convert)
    prepare_file(tmp_path / "domains.toml", tmp_path / "data")
    assert max(parts) == 16 * 64 * 64
    source = PreparedSplit("domains/x", "test", tmp_path / "data")
    assert len(source) == 4 * 32
    example = next(source[index] for index in range(len(source)) if source[index]["id"] == "a_64_128_128_192")
    np.testing.assert_array_equal(example["image"], values[:, 128:192, 64:128].transpose(1, 2, 0))
    np.testing.assert_array_equal(example["label"], values[0, 128:192, 64:128] % 3)


def test_several_processes_write_the_same_records(tmp_path, monkeypatch):
    own.raster(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 3000, (3, 96, 96), np.uint16))
    own.vector(tmp_path / "p.geojson", [shapely.box(500_000, 4_999_900, 500_100, 5_000_000)], ["road"])
    own.domains(
        tmp_path,
        'images = "a.tif"\nlabels = { vector = "p.geojson", column = "kind", background = "land" }\n'
        'range = "p2,p98"\ntile = 32\nsplit = { by = "block", test = 0.3 }',
    )
    found = []
    for workers in (1, 2):
        monkeypatch.setattr(own_builder.pool, "WORTH_PROCESSES", 0 if workers > 1 else 10**9)
        monkeypatch.setattr(own_builder.pool, "cores", lambda: 2)
        prepare_file(tmp_path / "domains.toml", tmp_path / f"data{workers}")
        source = PreparedSplit("domains/x", "train", tmp_path / f"data{workers}")
        found.append({source[i]["id"]: (source[i]["image"], source[i]["label"]) for i in range(len(source))})
    assert found[0].keys() == found[1].keys()
    for name, (image, label) in found[0].items():
        np.testing.assert_array_equal(image, found[1][name][0])
        np.testing.assert_array_equal(label, found[1][name][1])
    assert {int(value) for _, label in found[0].values() for value in np.unique(label)} == {1, 2}


def test_a_domain_that_left_the_file_is_named(two, caplog):
    path, data_dir = two
    prepare_file(path, data_dir)
    own.domains(path.parent, TWO[TWO.index("[domains.b]") :])
    prepare_file(path, data_dir)
    assert any("domains/a is no longer in" in record.message for record in caplog.records)


def test_the_input_is_recorded_with_the_data(two):
    path, data_dir = two
    prepare_file(path, data_dir, ["a"])
    made = json.loads((data_dir / "domains/a/1.0.0/metadata.json").read_text())[own_builder.MADE_FROM]
    assert made["table"]["images"] == "i/*.png"
    assert made["files"][str(path.parent / "i/1.png")][0] == (path.parent / "i/1.png").stat().st_size
