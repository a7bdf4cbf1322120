"""Pixels of the preview."""

import numpy as np
import pytest
from PIL import Image

from crossearth_jax.mapping.map_layers import NODATA, Legend
from crossearth_jax.mapping.preview import GAP, write_preview
from crossearth_jax.mapping.scene import SceneOptions, open_scene


@pytest.mark.parametrize("classes", [2, 40])
def test_scene_map_and_legend(write_scene, tmp_path, classes):
    rng = np.random.default_rng(0)
    bands, ids = rng.integers(0, 255, (3, 30, 90), np.uint8), rng.integers(0, 2, (1, 30, 90), np.uint8)
    ids[0, :5, :6] = NODATA
    mask = ids[0] != NODATA
    palette = ((200, 10, 10), (10, 200, 10), *[(9, 9, 9)] * (classes - 2))
    legend = Legend(tuple(f"class {i}" for i in range(classes)), palette)
    scene = write_scene(bands, mask=mask)
    write_scene(ids, "map.tif", nodata=NODATA)
    with open_scene(scene, SceneOptions()) as opened:
        write_preview(opened, tmp_path / "map.tif", tmp_path / "map.png", legend)
    found = np.asarray(Image.open(tmp_path / "map.png"))
    assert found.shape[1] == 2 * 90 + GAP
    white = np.full(3, 255)
    np.testing.assert_array_equal(found[:30, :90], np.where(mask[..., None], np.moveaxis(bands, 0, -1), white))
    colours = np.array(palette)[ids[0] * mask]
    np.testing.assert_array_equal(found[:30, 90 + GAP :], np.where(mask[..., None], colours, white))
    legend_pixels = {tuple(pixel) for pixel in found[30 + GAP :].reshape(-1, 3)}
    assert set(palette) <= legend_pixels  # every entry fits into the legend
