"""WHU Building from miniature archives: two platforms, masks of 255 and 1, the split of the authors' test folder."""

import numpy as np
import pytest
from miniatures import pictures, prepared
from miniatures import whu_building as miniature

from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare


def assert_split(records, platform, split, names):
    assert sorted(records) == sorted(names)
    for name in names:
        image, label = miniature.truth(platform, split, name)
        np.testing.assert_array_equal(records[name]["image"], image)
        np.testing.assert_array_equal(records[name]["label"], label)


def test_satellite_of_the_authors(tmp_path):
    miniature.write_repacked(tmp_path)
    found = prepared.examples("whu_building/satellite_ii", tmp_path, tmp_path / "data")
    assert list(found) == ["train", "test"]
    for split, names in miniature.SATELLITE.items():
        assert_split(found[split], "satellite", split, names)
    assert prepared.metadata("whu_building/satellite_ii", tmp_path / "data")["choices"]["masks"] == "0 and 1"


def test_satellite_tiles_without_buildings_belong_to_their_split(tmp_path):
    miniature.write(tmp_path)
    found = prepared.examples("whu_building/satellite_ii", tmp_path, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS["satellite_ii"]
    for split, names in miniature.SATELLITE.items():
        for name in miniature.EMPTY[split]:
            image, label = miniature.empty(split, name)
            record = found[split].pop(f"no_{name}")
            np.testing.assert_array_equal(record["image"], image)
            np.testing.assert_array_equal(record["label"], label)
        assert_split(found[split], "satellite", split, names)


def test_numbers_of_the_real_satellite_set():
    assert DOMAINS["whu_building/satellite_ii"].counts == {"train": 3135 + 10527, "test": 903 + 2823}


def test_one_mask_does_not_decide_for_itself(tmp_path):
    """In a dataset of 0 and 255, a mask whose largest value is 1 contains no building."""
    miniature.write(tmp_path)
    root = tmp_path / "3. The cropped image tiles and raster labels"
    pictures.write_files(root, {"val/label/0.tif": miniature.truth("aerial", "val", "0")[1]})
    found = prepared.examples("whu_building/aerial", tmp_path, tmp_path / "data")
    assert not found["val"]["0"]["label"].any() and found["val"]["1"]["label"].any()


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
    with pytest.raises(UserError, match=r"was prepared with whu_building\.test_folder=val, but test is given now"):
        prepare("whu_building/aerial", tmp_path / "data", tmp_path, {"test_folder": "test"})
