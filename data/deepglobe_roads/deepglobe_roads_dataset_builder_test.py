"""DeepGlobe Road Extraction from miniature archives: the threshold of masks, JPEG files stored unchanged."""

import numpy as np
import pytest
from miniatures import deepglobe_roads as miniature
from miniatures import pictures, prepared


@pytest.mark.parametrize("write", [miniature.write, miniature.write_repacked])
def test_layouts(tmp_path, write):
    write(tmp_path)
    found = prepared.examples("deepglobe_roads/roads", tmp_path, tmp_path / "data")
    assert list(found) == ["train"] and sorted(found["train"]) == sorted(miniature.IDS)
    for name in miniature.IDS:
        image, label = miniature.truth(name)
        np.testing.assert_array_equal(found["train"][name]["image"], pictures.decoded(image))
        np.testing.assert_array_equal(found["train"][name]["label"], label)
