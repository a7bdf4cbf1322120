"""LoveDA from miniature archives: areas, splits, and the number for nodata."""

import numpy as np
import pytest
from miniatures import loveda as miniature
from miniatures import prepared


@pytest.mark.parametrize("write", [miniature.write, miniature.write_repacked])
@pytest.mark.parametrize("area", ["urban", "rural"])
def test_layouts(tmp_path, area, write):
    write(tmp_path)
    found = prepared.examples(f"loveda/{area}", tmp_path, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == miniature.COUNTS[area]
    for (split, own), scenes in miniature.SCENES.items():
        for scene in scenes if own == area else ():
            image, label = miniature.truth(scene)
            np.testing.assert_array_equal(found[split][scene]["image"], image)
            np.testing.assert_array_equal(found[split][scene]["label"], label)
            assert set(np.unique(label)) == {0, 1, 2, 3, 4, 5, 6, 255}
