"""Vaihingen from miniature archives: areas of different sizes; area 9 is in no split."""

import zipfile

import numpy as np
import pytest
from crossearth_data.vaihingen import vaihingen_dataset_builder as vaihingen  # pyright: ignore[reportMissingImports]
from miniatures import isprs, pictures, prepared
from miniatures import vaihingen as miniature


def zips_in_a_zip(folder):
    """Write the two archives as downloaded: inside another archive, with unrelated files."""
    miniature.write(folder / "loose")
    files = {f"Vaihingen/{path.name}": path.read_bytes() for path in (folder / "loose").iterdir()}
    pictures.write_zip(folder / "once/Vaihingen.zip", files, stored=True)
    pictures.write_zip(
        folder / "twice/all.zip", {"Vaihingen.zip": (folder / "once/Vaihingen.zip").read_bytes()}, stored=True
    )


def unpacked(folder):
    """Unpack each archive into a folder of its name."""
    miniature.write_all_labels(folder / "zips")
    for archive in (folder / "zips").iterdir():
        zipfile.ZipFile(archive).extractall(folder / "unpacked" / archive.stem)


@pytest.mark.parametrize("layout", ["loose", "once", "twice", "all labels", "unpacked", "tiles"])
def test_layouts(tmp_path, layout):
    """Labels with boundaries have the names and sizes of images; the two are never confused."""
    if layout == "tiles":
        miniature.write_repacked(tmp_path / layout)
    elif layout == "all labels":
        miniature.write_all_labels(tmp_path / layout)
    elif layout == "unpacked":
        unpacked(tmp_path)
    else:
        zips_in_a_zip(tmp_path)
    found = prepared.examples("vaihingen/irrg", tmp_path / layout, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS
    for split, scenes in miniature.SCENES.items():
        for scene in scenes:
            image, label = map(isprs.tiles, miniature.truth(scene))
            for box in image:
                record = found[split]["_".join([scene, *map(str, box)])]
                np.testing.assert_array_equal(record["image"], image[box])
                np.testing.assert_array_equal(record["label"], label[box])


def test_areas():
    train, val = (set(vaihingen.IDS[split]) for split in ("train", "val"))
    assert (len(train), len(val), train & val) == (16, 17, set())
    assert "area9" not in train | val
