"""Held-out pixels have no labels in training, and only held-out pixels are scored."""

import numpy as np
import pytest
from crossearth_data.blue_marble import rasters

from benchmarks import held_out_source
from crossearth_jax.benchmark import IGNORE
from crossearth_jax.inputs.sources import PreparedSplit


@pytest.fixture(scope="module")
def season():
    return rasters.load_season("green", rasters.DIRECTORY)


def labels_on_globe(folder, split, grid):
    """Count for each pixel of the globe how many tiles of a split have a label there."""
    seen = np.zeros(grid, np.int64)
    source = PreparedSplit(held_out_source.SOURCE, split, folder)
    for index in range(len(source)):
        example = source[index]
        row, column = (int(number) for number in example["id"].split("_")[1:])
        height, width = example["label"].shape
        seen[row : row + height, column : column + width] += example["label"] != IGNORE
    return seen


@pytest.mark.parametrize("part", held_out_source.PARTS)
def test_hidden_pixels_are_the_scored_ones(part, season, tmp_path, blue_marble_dir):
    hidden, scored = held_out_source.masks(part, season)
    own = labels_on_globe(blue_marble_dir, "train", season.grid)
    for name, mask in scored.items():
        folder = held_out_source.prepare(tmp_path / name, hidden, mask)
        train, held = (labels_on_globe(folder, split, season.grid) for split in ("train", "validation"))
        assert train.sum() > 0 and not train[hidden].any()
        np.testing.assert_array_equal(train[~hidden], own[~hidden])
        assert held.max() == 1 and not held[~mask].any() and not held[own == 0].any()


def test_coasts_are_not_scored_in_climates():
    confusion = np.diag([50, 40, 30, 20, 1])
    confusion[1, 2] = 10
    assert held_out_source.score(confusion, "climates")["iou"] == {"forest": 80.0, "shrub_grass": 75.0, "cropland": 100}
    assert list(held_out_source.score(confusion, "asia")["iou"]) == ["water", "forest", "shrub_grass", "cropland"]
