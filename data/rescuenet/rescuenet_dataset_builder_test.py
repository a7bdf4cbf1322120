"""RescueNet from miniature archives: the remap to five classes, water, and the authors' labels."""

import io

import numpy as np
import pytest
from miniatures import pictures, prepared
from miniatures import rescuenet as miniature
from PIL import Image

from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare

DOMAIN = "rescuenet/rescuenet_5class"


@pytest.mark.parametrize("water", ["clutter", "ignored"])
def test_official_archive(tmp_path, water):
    miniature.write(tmp_path)
    found = prepared.examples(DOMAIN, tmp_path, tmp_path / "data", water=water)
    assert list(found) == ["test"] and sorted(found["test"]) == sorted(miniature.IDS)
    for name in miniature.IDS:
        image, numbers = miniature.truth(name)
        np.testing.assert_array_equal(found["test"][name]["image"], pictures.decoded(image))
        expected = miniature.TRAIN_IDS[numbers]
        if water == "ignored":
            expected[np.isin(numbers, miniature.WATER)] = 255
        np.testing.assert_array_equal(found["test"][name]["label"], expected)
    recorded = prepared.metadata(DOMAIN, tmp_path / "data")
    assert recorded["options"]["water"] == water and recorded["choices"] == {"labels": "official"}


def test_the_authors_labels_are_detected(tmp_path):
    miniature.write_repacked(tmp_path)
    found = prepared.examples(DOMAIN, tmp_path, tmp_path / "data")
    for name in miniature.IDS:
        expected = miniature.TRAIN_IDS[miniature.truth(name)[1]]
        expected[0, 0] = 255
        np.testing.assert_array_equal(found["test"][name]["label"], expected)
    assert prepared.metadata(DOMAIN, tmp_path / "data")["choices"] == {"labels": "repacked"}


@pytest.mark.parametrize(
    ("sand", "expected"),
    [
        (True, r"10778_lab\.png and others are labels of version 1\.0 \(some are 11\).*download version 2"),
        (False, r"10778_lab\.png and others are labels of version 1\.0 \(from the name of the folder\)"),
    ],
)
def test_version_1_is_refused(tmp_path, sand, expected):
    miniature.write_version_1(tmp_path, sand)
    with pytest.raises(UserError, match=expected):
        prepare(DOMAIN, tmp_path / "data", tmp_path)
    if sand:
        expected = r"unknown label values 11 .*; 11 is sand in version 1\.0, whose classes are numbered differently"
        with pytest.raises(UserError, match=expected):
            prepare(DOMAIN, tmp_path / "data", tmp_path, {"labels": "official"})


def turned_round(data):
    """Return the JPEG file with an EXIF orientation of 180 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_photographs_are_put_upright(tmp_path):
    """A rotation by 180 degrees cannot be detected from the image size."""
    image, numbers = miniature.truth("10778")
    data = turned_round(image)
    root = "test/test-"
    pictures.write_files(tmp_path, {f"{root}org-img/10778.jpg": data, f"{root}label-img/10778_lab.png": numbers})
    found = prepared.examples(DOMAIN, tmp_path, tmp_path / "data")["test"]["10778"]
    np.testing.assert_array_equal(found["image"], pictures.decoded(data)[::-1, ::-1])
    np.testing.assert_array_equal(found["label"], miniature.TRAIN_IDS[numbers])


def test_the_wrong_kind_of_labels_is_refused(tmp_path):
    miniature.write(tmp_path)
    expected = r"11420_lab\.png|10778_lab\.png has the unknown label values .*--option rescuenet\.labels=official"
    with pytest.raises(UserError, match=expected):
        prepare(DOMAIN, tmp_path / "data", tmp_path, {"labels": "repacked"})
    with pytest.raises(UserError, match=r"unknown option 'rescuenet\.water=clay'; .*rescuenet\.water=clutter\|ignored"):
        prepare(DOMAIN, tmp_path / "data", tmp_path, {"water": "clay"})
