"""Areas of the classes of small maps, compared with areas worked out by hand."""

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth_jax.mapping.grid import Grid
from crossearth_jax.mapping.map_layers import NODATA, Legend
from crossearth_jax.mapping.map_summary import area_tag, class_sizes, summary

LEGEND = Legend(("land", "sea", "ice"), ((10, 20, 255), (0, 128, 9), (7, 7, 7)))
EQUAL_AREA = Affine(100, 0, 0, 0, -100, 5_000_000)  # pixels of one hectare in EPSG:6933


def sizes_of(path, ids, grid):
    profile = {"driver": "GTiff", "height": ids.shape[0], "width": ids.shape[1], "count": 1, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(
        path, "w", crs=grid.crs, transform=grid.transform, nodata=NODATA, **profile, **blocks
    ) as dataset:
        dataset.write(ids, 1)
    return class_sizes(path, grid, 3)


@pytest.fixture
def ids():
    """Six pixels of land, three of sea, none of ice, the rest nodata; they lie in several blocks."""
    found = np.full((40, 50), NODATA, np.uint8)
    found[:3, 0:2], found[38, 47:50] = 0, 1
    return found


def test_areas_counted_by_hand(tmp_path, ids):
    grid = Grid(CRS.from_epsg(6933), EQUAL_AREA, 40, 50)
    sizes = sizes_of(tmp_path / "map.tif", ids, grid)
    assert sizes.pixels.tolist() == [6, 3, 0] and sizes.nodata == 1991
    np.testing.assert_allclose(sizes.hectares, [6, 3, 0], rtol=1e-5)
    np.testing.assert_allclose(sizes.percent, [200 / 3, 100 / 3, 0], rtol=1e-5)
    found = summary("map.tif", grid, LEGEND, sizes, {"SCENE": "a.tif"})
    assert found["classes"][1] == {
        "id": 1, "name": "sea", "colour": "#008009", "pixels": 3, "hectares": pytest.approx(3, abs=1e-4),
        "percent": 33.3333,
    }  # fmt: skip
    assert (found["crs"], found["nodata_pixels"], found["metadata"]) == ("EPSG:6933", 1991, {"SCENE": "a.tif"})


def test_shares_of_a_geographic_map_are_those_of_the_ground(tmp_path):
    """A pixel at 60 degrees has half the area of one at the equator, up to the flattening of the Earth."""
    ids = np.zeros((62, 4), np.uint8)
    ids[:31] = 1  # from 60.5 to 29.5 degrees
    ids[1:30], ids[31:60] = NODATA, NODATA
    ids[30] = ids[61] = NODATA
    grid = Grid(CRS.from_epsg(4326), Affine(1, 0, 0, 0, -1, 60.5), 62, 4)
    sizes = sizes_of(tmp_path / "map.tif", ids, grid)
    assert sizes.pixels.tolist() == [4, 4, 0]  # at 0 and at 60 degrees
    np.testing.assert_allclose(sizes.percent, [66.4, 33.6, 0], atol=0.1)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_map_of_unknown_place_has_shares_of_pixels(tmp_path, ids):
    grid = Grid(None, Affine.identity(), 40, 50)
    sizes = sizes_of(tmp_path / "map.tif", ids, grid)
    assert sizes.hectares is None and sizes.pixels.tolist() == [6, 3, 0]
    assert area_tag(LEGEND, sizes) == "land: 66.6667 %; sea: 33.3333 %; ice: 0.0 %"
    found = summary("map.tif", grid, LEGEND, sizes, {})
    assert (found["crs"], found["ground_resolution"]) == (None, None)
    assert [entry["hectares"] for entry in found["classes"]] == [None, None, None]
