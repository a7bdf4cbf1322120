"""WHU Building from miniature archives: two platforms, masks of 255 and of 1, and which split the authors' test is."""

import numpy as np
import pytest
from miniatures import prepared
from miniatures import whu_building as miniature

from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare


def assert_split(records, platform, split, names):
    assert sorted(records) == sorted(names)
    for name in names:
        image, label = miniature.truth(platform, split, name)
        np.testing.assert_array_equal(records[name]["image"], image)
        np.testing.assert_array_equal(records[name]["label"], label)


@pytest.mark.parametrize("write", [miniature.write, miniature.write_repacked])
def test_satellite(tmp_path, write):
    write(tmp_path)
    found = prepared.examples("whu_building/satellite_ii", tmp_path, tmp_path / "data")
    assert list(found) == ["train", "test"]
    for split, names in miniature.SATELLITE.items():
        assert_split(found[split], "satellite", split, names)


def test_official_aerial_splits(tmp_path):
    miniature.write(tmp_path)
    found = prepared.examples("whu_building/aerial", tmp_path, tmp_path / "data")
    assert sorted(found) == ["test", "train", "val"]
    for split, names in miniature.AERIAL.items():
        assert_split(found[split], "aerial", split, names)


@pytest.mark.parametrize(("option", "held"), [("detect", "val"), ("val", "val"), ("test", "test")])
def test_the_authors_test_folder_is_the_validation_split_unless_told_otherwise(tmp_path, option, held):
    miniature.write_repacked(tmp_path)
    found = prepared.examples("whu_building/aerial", tmp_path, tmp_path / "data", test_folder=option)
    assert sorted(found) == sorted(["train", held])
    assert_split(found[held], "aerial", "val", miniature.AERIAL["val"])
    recorded = prepared.metadata("whu_building/aerial", tmp_path / "data")
    assert recorded["choices"]["split in the folder test"] == held
    assert recorded["options"]["test_folder"] == option
    missing = ({"val", "test"} - {held}).pop()
    assert recorded["counts"][missing]["images"] == 0


def test_a_prepared_dataset_keeps_its_options(tmp_path):
    miniature.write_repacked(tmp_path)
    prepare("whu_building/aerial", tmp_path / "data", tmp_path, {"test_folder": "val"})
    prepare("whu_building/aerial", tmp_path / "data")
    with pytest.raises(UserError, match=r"was prepared with whu_building\.test_folder=val, now test is asked for"):
        prepare("whu_building/aerial", tmp_path / "data", tmp_path, {"test_folder": "test"})
