"""Grids compared with numbers worked out by hand."""

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
        # The middle is at 60 degrees north, where a degree in WGS 84 is 55.800 km by 111.412 km.
        ("EPSG:4326", Affine(0.01, 0, 5, 0, -0.01, 60.5), (558.00, 1114.12)),
        ("EPSG:4326", Affine(0, 0.01, 5, -0.01, 0, 60.5), (1114.12, 558.00)),  # rotated by 90 degrees
        ("EPSG:4326", Affine(0.01, 0, 365, 0, -0.01, 60.5), (558.00, 1114.12)),  # longitudes of 0 to 360
        # The same place in web Mercator, enlarged by 1 / cos(60 degrees), up to the flattening of the Earth.
        ("EPSG:3857", Affine(10, 0, 0, 0, -10, 8_399_737.9 + 500), (5.0126, 5.0042)),
        ("EPSG:3395", Affine(10, 0, 0, 0, -10, 8_362_698.5 + 500), (5.0126, 5.0126)),  # conformal
        ("EPSG:3857", NORTH_UP @ Affine.translation(-50, -50), (10, 9.933)),  # the equator
        ("EPSG:6933", Affine(10, 0, 0, 0, -10, 6_349_741 + 500), (5.78775, 17.27787)),  # equal area: 10 x 10 = 100 m2
        ("EPSG:3413", Affine(10, 0, -500, 0, -10, 500), (10.3108, 10.3108)),  # polar; true to scale at 70 degrees
        ("EPSG:32618+5703", NORTH_UP, (10, 10)),  # with heights
        (None, NORTH_UP, None),
        ('LOCAL_CS["site",UNIT["metre",1]]', NORTH_UP, None),
        ("EPSG:32618", Affine.identity(), None),  # no geotransform
    ],
)
def test_pixel_size_in_metres(crs, transform, expected):
    size = Grid(CRS.from_string(crs) if crs else None, transform, 100, 100).pixel_size()
    assert size == (expected and pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize(
    ("crs", "transform", "size", "expected"),
    [
        # The grid area divided by the square of the scale: 0.9996 on the central meridian.
        ("EPSG:32618", Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000), (300, 500), 300 * 500 * 0.25 / 0.9996**2),
        ("EPSG:32618", Affine(10, 0, 500_000, 0, -10, 4_000_000) @ Affine.rotation(40), (1, 40), 4000 / 0.9996**2),
        ("EPSG:6933", Affine(25, 0, -9e5, 0, -25, 6_000_000), (400, 300), 400 * 300 * 625),  # equal area
        ("EPSG:4326", Affine(0.5, 0, -180, 0, -0.5, 90), (360, 720), 5.100656e14),  # the whole Earth
        ("EPSG:3413", Affine(5000, 0, -1e5, 0, -5000, 1e5), (40, 40), 4e10 * 1.03108**2),  # around the pole
    ],
)
def test_areas_of_pixels(crs, transform, size, expected):
    areas = Grid(CRS.from_string(crs), transform, *size).pixel_areas(0, 0, *size)
    assert areas is not None and areas.shape == size
    assert areas.sum() == pytest.approx(expected, rel=1e-4)


def test_areas_shrink_towards_the_pole():
    """Compared with the closed form of the area between two parallels of the ellipsoid WGS 84."""
    found = Grid(CRS.from_epsg(4326), Affine(1, 0, 0, 0, -1, 90), 90, 10).pixel_areas(20, 3, 60, 5)
    minor, squared = 6_356_752.3142, 0.00669437999  # semi-minor axis in metres, eccentricity squared
    sine = np.sin(np.radians(70 - np.arange(61)))
    root = math.sqrt(squared)
    below = sine / (1 - squared * sine**2) + np.log((1 + root * sine) / (1 - root * sine)) / (2 * root)
    expected = -np.diff(below) * minor**2 / 2 * np.radians(1)
    assert found is not None
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 5, 1), rtol=5e-5)


@pytest.mark.parametrize(("crs", "transform"), [(None, NORTH_UP), (UTM, Affine.identity())])
def test_areas_without_a_place_on_earth(crs, transform):
    assert Grid(crs, transform, 10, 10).pixel_areas(0, 0, 10, 10) is None


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


def test_longitudes_may_be_turned_around():
    grid = Grid(CRS.from_epsg(4326), Affine(1, 0, 0, 0, -1, 90), 180, 360)  # 0 to 360 degrees
    assert grid.part((-90.0, 10.0, -80.0, 20.0)) == (70, 270, 10, 10)
    assert grid.part((350.0, 10.0, 355.0, 20.0)) == (70, 350, 10, 5)
    assert grid.part((-10.0, 10.0, 45.0, 20.0)) == (70, 0, 10, 45)  # the larger part
    assert grid.leaves_out((-10.0, 10.0, 45.0, 20.0)) and not grid.leaves_out((1.0, 10.0, 45.0, 20.0))
    usual = Grid(CRS.from_epsg(4326), Affine(1, 0, -180, 0, -1, 90), 180, 360)
    assert usual.part((270.0, 10.0, 280.0, 20.0)) == (70, 90, 10, 10)
    with pytest.raises(UserError, match="do not overlap the scene, which covers 0, -90, 360, 90"):
        grid.part((10.0, 100.0, 20.0, 110.0))


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
    reach = 5 * (math.cos(math.radians(30)) + math.sin(math.radians(30)))  # half a rotated box, in pixels
    assert (top, top + height) == (math.floor(60 - reach), math.ceil(60 + reach))
    assert (left, left + width) == (math.floor(70 - reach), math.ceil(70 + reach))


def test_part_without_overlap():
    grid = Grid(UTM, NORTH_UP, 100, 150)
    with pytest.raises(UserError, match="do not overlap the scene, which covers 500, -100, 2000, 900"):
        grid.part((3000.0, 0.0, 4000.0, 10.0))
    with pytest.raises(UserError, match="expected left < right"):
        grid.part((10.0, 0.0, 5.0, 10.0))


@pytest.mark.parametrize(
    ("crs", "transform", "found"),
    [
        (None, NORTH_UP, "this one has none"),
        (UTM, Affine.identity(), "this one has no geotransform"),
        (CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]'), NORTH_UP, "site grid"),
    ],
)
def test_metres_need_a_place_on_earth(crs, transform, found):
    with pytest.raises(UserError, match=f"needs a scene with a coordinate reference system.*{found}.*leave --gsd out"):
        Grid(crs, transform, 100, 150).resampled(3.0)
