"""Massachusetts Roads from miniature archives: home page, Kaggle copy, and the authors' rewritten labels."""

import numpy as np
import pytest
from miniatures import massachusetts_roads as miniature
from miniatures import pictures, prepared

from crossearth_jax.config import UserError
from crossearth_jax.prepare import prepare


@pytest.mark.parametrize(
    ("write", "layout", "masks"),
    [
        (miniature.write, "home page", "0 and 255"),
        (miniature.write_kaggle, "Kaggle copy", "0 and 255"),
        (miniature.write_repacked, "CrossEarth authors", "0 and 1"),
    ],
)
def test_layouts(tmp_path, write, layout, masks):
    write(tmp_path)
    found = prepared.examples("massachusetts_roads/roads", tmp_path, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS
    for split, names in miniature.SCENES.items():
        for name in names:
            image, label = miniature.truth(name)
            np.testing.assert_array_equal(found[split][name]["image"], image)
            np.testing.assert_array_equal(found[split][name]["label"], label)
    recorded = prepared.metadata("massachusetts_roads/roads", tmp_path / "data")
    assert (recorded["choices"]["layout of test"], recorded["choices"]["masks of test"]) == (layout, masks)


def test_splits_may_store_masks_in_two_ways(tmp_path):
    """The test labels are the authors' (0 and 1), the training labels those of the Kaggle copy (0 and 255)."""
    miniature.write_kaggle(tmp_path)
    labels = {name: miniature.truth(name)[1] for name in miniature.SCENES["test"]}
    pictures.write_files(tmp_path / "tiff/test_labels_new", {f"{name}.tif": label for name, label in labels.items()})
    images = {f"{name}.tiff": miniature.truth(name)[0] for name in labels}
    pictures.write_files(tmp_path / "tiff/test", images)
    found = prepared.examples("massachusetts_roads/roads", tmp_path, tmp_path / "data")
    for split, names in miniature.SCENES.items():
        for name in names:
            np.testing.assert_array_equal(found[split][name]["label"], miniature.truth(name)[1])


def test_buildings_of_the_same_home_page_are_not_taken(tmp_path):
    miniature.write(tmp_path)
    (tmp_path / "mass_roads").rename(tmp_path / "mass_buildings")
    with pytest.raises(UserError, match="none of massachusetts_roads/roads"):
        prepare("massachusetts_roads/roads", tmp_path / "data", tmp_path)
