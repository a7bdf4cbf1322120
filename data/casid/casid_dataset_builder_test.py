"""CASID from miniature archives: both numberings, the folder of the TroMs labels, whole scenes cut by either rule."""

import numpy as np
import pytest
from crossearth_data.tiles import Cut  # pyright: ignore[reportMissingImports]
from miniatures import casid as miniature
from miniatures import prepared

from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("climate", ["subms", "troms"])
def test_tiles_with_either_numbering(tmp_path, climate, first):
    miniature.write(tmp_path, first)
    found = prepared.examples(f"casid/{climate}", tmp_path, tmp_path / "data")
    for split, names in miniature.NAMES.items():
        assert sorted(found[split]) == sorted(names)
        for name in names:
            image, label = miniature.truth(climate, split, name)
            np.testing.assert_array_equal(found[split][name]["image"], image)
            np.testing.assert_array_equal(found[split][name]["label"], label)
    assert prepared.metadata(f"casid/{climate}", tmp_path / "data")["choices"]["ids"] == f"{first}-{first + 4}"


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
