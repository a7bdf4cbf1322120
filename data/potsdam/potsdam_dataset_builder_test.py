"""Potsdam from miniature archives: tiles, colours, bands, five classes, and the numbers of the real dataset."""

import re
import shutil

import numpy as np
import pytest
from crossearth_data.potsdam import potsdam_dataset_builder as potsdam  # pyright: ignore[reportMissingImports]
from crossearth_data.tiles import Cut  # pyright: ignore[reportMissingImports]
from miniatures import isprs, pictures, prepared
from miniatures import potsdam as miniature

from crossearth_jax.benchmark import DOMAINS
from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare

FIVE = np.array([*miniature.FIVE, *[255] * 250], np.uint8)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("potsdam")
    miniature.write(folder)
    return folder


def assert_tiles(found, bands, table=None):
    """Check that every tile of every split has the pixels at the position in its name."""
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS
    for split, scenes in miniature.SCENES.items():
        for scene in scenes:
            image, label = miniature.truth(scene, bands)
            for box, tile in isprs.tiles(image).items():
                record = found[split]["_".join([scene, *map(str, box)])]
                np.testing.assert_array_equal(record["image"], tile)
                truth = isprs.tiles(label)[box]
                np.testing.assert_array_equal(record["label"], truth if table is None else table[truth])


@pytest.mark.parametrize("bands", ["RGB", "IRRG"])
def test_official_archives(official, tmp_path, bands):
    domain = f"potsdam/{bands.lower()}"
    assert_tiles(prepared.examples(domain, official, tmp_path), bands)
    recorded = prepared.metadata(domain, tmp_path)
    assert recorded["options"] == {"unknown_colours": "nearest", "overlap": "error", "unlabelled": "error"}
    assert recorded["choices"] == {"layout": "official scenes"}
    assert recorded["counts"]["val"] == {"images": 6, "expected": 2016}
    assert "split val of potsdam/" in recorded["warnings"][1]
    assert "split val lacks the scenes 2_14, 3_13" in recorded["notes"][1]


def test_the_faded_label_of_4_12_is_recovered_exactly(official, tmp_path):
    """2_10 of the miniature stands for 4_12; with ignored colours, six tiles would have no labels."""
    shutil.copytree(official, tmp_path / "archives")
    (tmp_path / "archives/5_Labels_all_noBoundary.zip").unlink()
    labels = {f"top_potsdam_{scene}_label_noBoundary.tif": miniature.faded(scene) for scene in miniature.scenes()}
    pictures.write_zip(tmp_path / "archives/5_Labels_all_noBoundary.zip", labels)
    assert_tiles(prepared.examples("potsdam/rgb", tmp_path / "archives", tmp_path / "data"), "RGB")
    assert_tiles(prepared.examples("potsdam/irrg_5class", tmp_path / "archives", tmp_path / "data"), "IRRG", FIVE)
    warnings = prepared.metadata("potsdam/rgb", tmp_path / "data")["warnings"]
    (remark,) = (warning for warning in warnings if "potsdam_2_10" in warning)
    assert re.fullmatch(r"100\.0% of .*2_10_label_noB.* outside the palette, at most \d\d away; the nearest .*", remark)


def test_five_classes(official, tmp_path):
    assert_tiles(prepared.examples("potsdam/irrg_5class", official, tmp_path), "IRRG", FIVE)


def test_tiles_of_the_authors(tmp_path):
    miniature.write_repacked(tmp_path / "six")
    assert_tiles(prepared.examples("potsdam/irrg", tmp_path / "six", tmp_path / "a"), "IRRG")
    assert_tiles(prepared.examples("potsdam/rgb_5class", tmp_path / "six", tmp_path / "b"), "RGB", FIVE)
    miniature.write_repacked(tmp_path / "six", five=True)  # both side by side
    assert_tiles(prepared.examples("potsdam/rgb_5class", tmp_path / "six", tmp_path / "c"), "RGB", FIVE)
    assert prepared.metadata("potsdam/rgb_5class", tmp_path / "b")["choices"] == {"layout": "tiles with six classes"}
    assert prepared.metadata("potsdam/rgb_5class", tmp_path / "c")["choices"] == {"layout": "tiles with five classes"}


def test_a_tile_of_the_other_split_is_refused(tmp_path):
    miniature.write_repacked(tmp_path)
    for kind in ("img_dir", "ann_dir"):
        folder = tmp_path / "potsdam_1-6/RGB" / kind
        (folder / "val/2_13_0_0_512_512.png").rename(folder / "train/2_13_0_0_512_512.png")
    with pytest.raises(UserError, match=r"train/2_13_0_0_512_512\.png lies in the folder of split train, but.*val"):
        prepare("potsdam/rgb", tmp_path / "data", tmp_path)


def test_numbers_of_the_real_dataset():
    assert len(list(Cut(512).boxes(6000, 6000))) == 144
    assert not set(potsdam.IDS["train"]) & set(potsdam.IDS["val"])
    for config in ("rgb", "irrg", "rgb_5class", "irrg_5class"):
        assert {split: 144 * len(set(ids)) for split, ids in potsdam.IDS.items()} == DOMAINS[f"potsdam/{config}"].counts
