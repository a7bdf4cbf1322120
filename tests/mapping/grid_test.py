"""Grids against numbers worked out by hand."""

import math

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth_jax.config import UserError
from crossearth_jax.mapping.grid import Grid

NORTH_UP = Affine(10, 0, 500, 0, -10, 900)
UTM = CRS.from_epsg(32618)


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32618", NORTH_UP, (10, 10)),
        ("EPSG:32618", NORTH_UP @ Affine.rotation(33) @ Affine.scale(2, 3), (20, 30)),
        ("EPSG:2263", NORTH_UP, (3.048006, 3.048006)),  # US survey feet
        # 60 degrees north in the middle: a degree of longitude is half as long, 111.195 km / 2.
        ("EPSG:4326", Affine(0.01, 0, 5, 0, -0.01, 60.5), (555.975, 1111.949)),
        ("EPSG:4326", Affine(0, 0.01, 5, -0.01, 0, 60.5), (1111.949, 555.975)),  # turned by 90 degrees
        (None, NORTH_UP, None),
    ],
)
def test_pixel_size_in_metres(crs, transform, expected):
    size = Grid(CRS.from_string(crs) if crs else None, transform, 100, 100).pixel_size()
    assert size == (expected and pytest.approx(expected, rel=1e-5))


def test_resampled_keeps_corner_and_rotation():
    grid = Grid(UTM, NORTH_UP @ Affine.rotation(20), 100, 150).resampled(25.0)
    assert (grid.height, grid.width) == (40, 60)
    assert grid.pixel_size() == pytest.approx((25, 25))
    np.testing.assert_allclose(grid.transform @ (0, 0), (500, 900))
    np.testing.assert_allclose(grid.transform @ (60, 40), NORTH_UP @ Affine.rotation(20) @ (150, 100))


def test_resampled_never_reaches_a_pixel_beyond():
    for gsd in (3.3, 7.0, 29.0, 31.0, 5000.0):
        grid = Grid(UTM, NORTH_UP, 100, 150)
        copy = grid.resampled(gsd)
        x, y = ~grid.transform @ (copy.transform @ (copy.width - 0.5, copy.height - 0.5))
        assert gsd > 1000 or (x <= 150 and y <= 100)
        assert copy.height >= 1 and copy.width >= 1


def test_part():
    grid = Grid(UTM, NORTH_UP, 100, 150)
    assert grid.part((520.0, 800.0, 541.0, 885.0)) == (1, 2, 9, 3)
    assert grid.part((520.0, 800.0, 540.0, 880.0)) == (2, 2, 8, 2)
    assert grid.part((-1e6, -1e6, 1e6, 1e6)) == (0, 0, 100, 150)
    assert grid.shifted(2, 3, 8, 2).bounds() == (530, 800, 550, 880)


def test_part_of_a_rotated_grid_holds_the_box():
    grid = Grid(UTM, NORTH_UP @ Affine.rotation(30), 100, 150)
    x, y = grid.transform @ (70, 60)
    top, left, height, width = grid.part((x - 50, y - 50, x + 50, y + 50))
    reach = 5 * (math.cos(math.radians(30)) + math.sin(math.radians(30)))  # half a turned box, in pixels
    assert (top, top + height) == (math.floor(60 - reach), math.ceil(60 + reach))
    assert (left, left + width) == (math.floor(70 - reach), math.ceil(70 + reach))


def test_part_without_overlap():
    grid = Grid(UTM, NORTH_UP, 100, 150)
    with pytest.raises(UserError, match="do not overlap the scene, which covers 500, -100, 2000, 900"):
        grid.part((3000.0, 0.0, 4000.0, 10.0))
    with pytest.raises(UserError, match="expected left < right"):
        grid.part((10.0, 0.0, 5.0, 10.0))


def test_metres_need_a_reference_system():
    with pytest.raises(UserError, match="coordinate reference system"):
        Grid(None, NORTH_UP, 100, 150).resampled(3.0)
