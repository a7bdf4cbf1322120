"""CASID from miniature archives: both class numberings, the label folder of TroMs, whole scenes in two tile sizes."""

import shutil

import numpy as np
import pytest
from crossearth_data.tiles import Cut  # pyright: ignore[reportMissingImports]
from miniatures import casid as miniature
from miniatures import pictures, prepared

from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare


def assert_truth(found, climate):
    for split, names in miniature.NAMES.items():
        assert sorted(found[split]) == sorted(names)
        for name in names:
            image, label = miniature.truth(climate, split, name)
            np.testing.assert_array_equal(found[split][name]["image"], image)
            np.testing.assert_array_equal(found[split][name]["label"], label)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("climate", ["subms", "troms"])
def test_tiles_with_either_numbering(tmp_path, climate, first):
    miniature.write(tmp_path, first)
    found = prepared.examples(f"casid/{climate}", tmp_path, tmp_path / "data")
    assert_truth(found, climate)
    assert prepared.metadata(f"casid/{climate}", tmp_path / "data")["choices"]["ids of test"] == f"{first}-{first + 4}"


def test_numbers_are_taken_where_labels_are_stored_twice(tmp_path):
    miniature.write_both(tmp_path)
    found = prepared.examples("casid/troms", tmp_path, tmp_path / "data")
    assert_truth(found, "troms")
    assert prepared.metadata("casid/troms", tmp_path / "data")["choices"]["ids of train"] == "1-5"


def test_colours_are_read_where_there_are_no_numbers(tmp_path):
    miniature.write_both(tmp_path)
    for split in miniature.NAMES:
        shutil.rmtree(tmp_path / f"CASID/TroMs/all_{split}/label_id")
    found = prepared.examples("casid/troms", tmp_path, tmp_path / "data")
    assert_truth(found, "troms")
    assert prepared.metadata("casid/troms", tmp_path / "data")["choices"]["ids of test"] == "colours"


def test_numbers_from_1_without_water_do_not_shift_silently(tmp_path):
    """Without a 5 and with hardly any 0, the class numbering is ambiguous."""
    miniature.write(tmp_path, first=1, climates=("subms",))
    for name in miniature.NAMES["test"]:
        image, label = miniature.truth("subms", "test", name)
        stored = np.where(label == 4, 0, label) + 1
        stored[0, 0] = 0
        files = {f"image/{name}.png": image, f"label/{name}-label.png": stored.astype(np.uint8)}
        pictures.write_files(tmp_path / "CASID/SubMs/all_test", files)
    (tmp_path / "CAISD.zip").unlink()
    expected = r"3_0_0-label\.png and .* have no 5 and hardly any 0, .* 0-4 or 1-5; choose --option casid\.ids=0-4 or"
    with pytest.raises(UserError, match=expected):
        prepare("casid/subms", tmp_path / "data", tmp_path)
    found = prepared.examples("casid/subms", tmp_path, tmp_path / "data", ids="1-5")
    label = miniature.truth("subms", "test", "3_0_0")[1]
    expected = np.where(label == 4, 0, label)
    expected[0, 0] = 255
    np.testing.assert_array_equal(found["test"]["3_0_0"]["label"], expected)


@pytest.mark.parametrize(("tile", "last_top", "last_left"), [(1000, 10, 100), (1024, 0, 76)])
def test_whole_scenes_are_cut(tmp_path, tile, last_top, last_left):
    miniature.write_scenes(tmp_path)
    found = prepared.examples("casid/subms", tmp_path, tmp_path / "data", tile=str(tile))
    image, label = miniature.truth("subms", "train", "12", miniature.SCENE)
    height, width = miniature.SCENE
    rows, columns = sorted({0, last_top}), sorted({0, last_left})
    boxes = [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]
    assert sorted(found["train"]) == sorted("_".join(map(str, ("12", *box))) for box in boxes)
    for left, top, right, bottom in boxes:
        record = found["train"][f"12_{left}_{top}_{right}_{bottom}"]
        np.testing.assert_array_equal(record["image"], image[top:bottom, left:right])
        np.testing.assert_array_equal(record["label"], label[top:bottom, left:right])


def test_the_wrong_numbering_is_refused(tmp_path):
    miniature.write(tmp_path, first=1, climates=("subms",))
    with pytest.raises(UserError, match=r"-label\.png has the unknown label values 5 .*--option casid\.ids=1-5"):
        prepare("casid/subms", tmp_path / "data", tmp_path, {"ids": "0-4"})


def test_numbers_of_the_real_dataset():
    scenes = {
        name: {split: count / 25 for split, count in DOMAINS[f"casid/{name}"].counts.items()}
        for name in miniature.FOLDERS
    }
    assert sum(sum(counts.values()) for counts in scenes.values()) == 980
    for tile, stride in ((1000, 1000), (1024, 994)):
        boxes = list(Cut(tile, even=True).boxes(5000, 5000))
        assert [box.left for box in boxes[:5]] == [i * stride for i in range(5)]
        assert len(boxes) == 25 and boxes[-1].right == boxes[-1].bottom == 5000
