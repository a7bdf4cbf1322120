"""Selection of the bands that become red, green and blue."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from crossearth_jax.config import UserError
from crossearth_jax.mapping.bands import band_names, select_bands

GRAY, UNKNOWN, ALPHA = ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha
RED, GREEN, BLUE = ColorInterp.red, ColorInterp.green, ColorInterp.blue


def select(path, request=None):
    with rasterio.open(path) as dataset:
        return select_bands(dataset, request)


@pytest.mark.parametrize(
    ("colours", "names", "request_", "expected"),
    [
        ((GRAY, UNKNOWN, UNKNOWN, UNKNOWN), ("blue", "green", "red", "nir"), None, (3, 2, 1)),
        ((BLUE, GREEN, RED, ALPHA), None, None, (3, 2, 1)),
        ((RED, GREEN, BLUE, UNKNOWN), None, None, (1, 2, 3)),
        ((GRAY,), None, None, (1, 1, 1)),
        ((GRAY, ALPHA), None, None, (1, 1, 1)),
        ((GRAY, UNKNOWN, UNKNOWN), None, None, (1, 2, 3)),
        ((UNKNOWN, UNKNOWN, UNKNOWN, ALPHA), None, None, (1, 2, 3)),
        ((GRAY, UNKNOWN, UNKNOWN, UNKNOWN), ("blue", "green", "red", "NIR"), "nir, Red,2", (4, 3, 2)),
        ((GRAY, UNKNOWN), None, "2", (2, 2, 2)),
        ((RED, GREEN, BLUE), ("B04", "B03", "B02"), "B02,3,B04", (3, 3, 1)),
    ],
)
def test_selection(write_scene, colours, names, request_, expected):
    path = write_scene(np.ones((len(colours), 4, 5), np.uint8), colours=colours, names=names, photometric="minisblack")
    assert select(path, request_) == expected


def test_unnamed_bands_are_taken_in_order_with_a_warning(caplog):
    assert select("data/scenes/landsat7_olinda.tif") == (1, 2, 3)
    assert "choose others with --bands" in caplog.text


def test_descriptions_win_over_colours(write_scene):
    path = write_scene(np.ones((3, 4, 5), np.uint8), colours=(RED, GREEN, BLUE), names=("nir", None, None))
    with rasterio.open(path) as dataset:
        assert band_names(dataset) == ("nir", "green", "blue")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("7,2,1", r"no band '7'; it has bands 1 \(blue\), 2 \(green\), 3 \(red\), 4 \(nir\)"),
        ("0,2,1", "no band '0'"),
        ("swir,2,1", "no band 'swir'"),
        ("3,2", "names 2 bands, expected three"),
        ("", "no band ''"),
    ],
)
def test_bands_that_do_not_exist(request_, message):
    with pytest.raises(UserError, match=message):
        select("data/scenes/sentinel2_virginia.tif", request_)


def test_two_bands_are_no_colour_image(write_scene):
    with pytest.raises(UserError, match="choose which to use with --bands"):
        select(write_scene(np.ones((2, 4, 5), np.uint8)))
