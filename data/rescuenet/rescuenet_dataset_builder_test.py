"""RescueNet from miniature archives: the remap to five classes, water, and the authors' labels."""

import numpy as np
import pytest
from miniatures import pictures, prepared
from miniatures import rescuenet as miniature

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


def test_the_wrong_kind_of_labels_is_refused(tmp_path):
    miniature.write(tmp_path)
    expected = r"11420_lab\.png|10778_lab\.png has the unknown label values .*--option rescuenet\.labels=official"
    with pytest.raises(UserError, match=expected):
        prepare(DOMAIN, tmp_path / "data", tmp_path, {"labels": "repacked"})
    with pytest.raises(UserError, match=r"unknown option 'rescuenet\.water=clay'; .*rescuenet\.water=clutter\|ignored"):
        prepare(DOMAIN, tmp_path / "data", tmp_path, {"water": "clay"})
