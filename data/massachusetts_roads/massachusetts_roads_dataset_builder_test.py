"""Massachusetts Roads from miniature archives: official labels and the authors' rewritten ones."""

import numpy as np
import pytest
from miniatures import massachusetts_roads as miniature
from miniatures import prepared


@pytest.mark.parametrize(
    ("write", "labels"), [(miniature.write, "test_labels"), (miniature.write_repacked, "test_labels_new")]
)
def test_layouts(tmp_path, write, labels):
    write(tmp_path)
    found = prepared.examples("massachusetts_roads/roads", tmp_path, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS
    for split, names in miniature.SCENES.items():
        for name in names:
            image, label = miniature.truth(name)
            np.testing.assert_array_equal(found[split][name]["image"], image)
            np.testing.assert_array_equal(found[split][name]["label"], label)
    recorded = prepared.metadata("massachusetts_roads/roads", tmp_path / "data")
    assert recorded["choices"]["labels of test"] == labels
