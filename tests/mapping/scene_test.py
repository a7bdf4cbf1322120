"""Reading: masks of every kind, resampling against block means, parts of scenes, broken files."""

import contextlib

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from crossearth_jax.config import UserError
from crossearth_jax.mapping.scene import FILL, SceneOptions, check_scene, open_scene

RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
NORTH_UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)


def pixels(height=24, width=30, count=3, dtype=np.uint8, low=1, high=250):
    return np.random.default_rng(0).integers(low, high, (count, height, width)).astype(dtype)


def hole(height=24, width=30):
    valid = np.ones((height, width), bool)
    valid[4:12, 6:20] = False
    return valid


def read_all(path, **options):
    with open_scene(path, SceneOptions(**options)) as scene:
        return *scene.read(0, 0, scene.grid.height, scene.grid.width), scene


def masked_scene(write_scene, kind, dtype=np.uint8):
    """A scene with a hole that the file marks in one of the ways GeoTIFFs have."""
    bands, valid = pixels(dtype=dtype), hole()
    if kind == "alpha":
        alpha = (valid * np.iinfo(dtype).max).astype(dtype)
        return write_scene(np.concatenate([bands, alpha[None]]), colours=RGBA, photometric="rgb")
    if kind == "mask":
        return write_scene(bands, mask=valid)
    missing = {"nodata": 0, "nan": np.nan}[kind]
    return write_scene(np.where(valid, bands, missing).astype(dtype), nodata=missing if kind == "nodata" else None)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("alpha", np.uint8), ("alpha", np.uint16), ("mask", np.uint8), ("nodata", np.uint8), ("nan", np.float32)],
)
def test_masks(write_scene, kind, dtype):
    path = masked_scene(write_scene, kind, dtype)
    image, valid, _ = read_all(path, value_range=(0.0, 255.0))
    np.testing.assert_array_equal(valid, hole())
    np.testing.assert_array_equal(image, np.where(hole()[..., None], np.moveaxis(pixels(), 0, -1), FILL))


@pytest.mark.parametrize("kind", ["alpha", "mask", "nodata", "nan"])
def test_masks_survive_resampling(write_scene, kind):
    path = masked_scene(write_scene, kind, np.float32 if kind == "nan" else np.uint8)
    image, valid, scene = read_all(path, gsd=4.0, value_range=(0.0, 255.0))
    assert (scene.grid.height, scene.grid.width) == (12, 15)
    inside, around = np.s_[3:5, 4:9], np.s_[1:7, 2:11]  # one pixel of doubt: rotated grids round at borders
    assert not valid[inside].any()
    outside = np.ones(valid.shape, bool)
    outside[around] = False
    assert valid[outside].all()
    means = np.moveaxis(pixels().reshape(3, 12, 2, 15, 2).mean((2, 4)), 0, -1)
    np.testing.assert_allclose(image[outside], means[outside], atol=1.01)  # GDAL rounds to bytes, then we do


def test_a_pixel_with_data_in_one_band_is_valid(write_scene):
    bands = pixels()
    bands[0, 3, 5] = bands[1, 3, 5] = 255
    bands[:, 2, 2] = 255
    image, valid, _ = read_all(write_scene(bands, nodata=255))
    assert (~valid).nonzero() == ([2], [2])
    np.testing.assert_array_equal(image[3, 5], [0, 0, bands[2, 3, 5]])
    np.testing.assert_array_equal(image[2, 2], FILL)


def test_windows_may_reach_beyond_the_scene(write_scene):
    bands = pixels()
    with open_scene(write_scene(bands), SceneOptions()) as scene:
        image, valid = scene.read(20, 25, 10, 8)
    np.testing.assert_array_equal(image[:4, :5], np.moveaxis(bands[:, 20:, 25:], 0, -1))
    assert valid[:4, :5].all() and valid.sum() == 20
    assert (image[~valid] == FILL).all()


def test_sixteen_bit_is_stretched_by_its_own_percentiles():
    path = "data/scenes/sentinel2_virginia.tif"
    image, valid, scene = read_all(path)
    with rasterio.open(path) as dataset:
        raw = dataset.read([3, 2, 1]).astype(np.float64)
    low, high = (np.percentile(raw, q, axis=(1, 2), keepdims=True) for q in (2, 98))
    expected = np.rint(((raw - low) / (high - low)).clip(0, 1) * 255)
    assert valid.all()
    # float32 against float64: a value in the middle between two steps may fall to either side.
    assert np.abs(image - np.moveaxis(expected, 0, -1)).max() <= 1
    assert (image == np.moveaxis(expected, 0, -1)).mean() > 0.999
    assert scene.band_names == ("red", "green", "blue")
    assert scene.stretch.ranges[0] == pytest.approx((low[0, 0, 0], high[0, 0, 0]))


def test_eight_bit_is_stretched_only_when_asked(write_scene):
    bands = pixels()
    path = write_scene(bands)
    np.testing.assert_array_equal(read_all(path)[0], np.moveaxis(bands, 0, -1))
    _, _, scene = read_all(path, percentiles=(10.0, 60.0))
    expected = np.percentile(bands.astype(float), (10, 60), axis=(1, 2)).T
    np.testing.assert_allclose(scene.stretch.ranges, expected)


def test_stretch_belongs_to_the_scene_not_to_the_window():
    with open_scene("data/scenes/sentinel2_virginia.tif", SceneOptions()) as scene:
        whole, _ = scene.read(0, 0, 512, 512)
        part, _ = scene.read(100, 50, 70, 60)
    np.testing.assert_array_equal(part, whole[100:170, 50:110])
    left, _ = scene.grid.transform @ (50, 100)
    assert left == 442730 + 500


def test_part_of_a_scene(write_scene):
    bands = pixels()
    path = write_scene(bands, transform=NORTH_UP)
    image, _, scene = read_all(path, bounds=(500_010.0, 3_999_960.0, 500_030.0, 3_999_980.0))
    np.testing.assert_array_equal(image, np.moveaxis(bands[:, 10:20, 5:15], 0, -1))
    assert scene.grid.transform == Affine(2, 0, 500_010, 0, -2, 3_999_980)
    with pytest.raises(UserError, match="do not overlap"):
        check_scene(path, SceneOptions(bounds=(0.0, 0.0, 1.0, 1.0)))


def test_finer_grid_interpolates(write_scene):
    ramp = np.broadcast_to(np.arange(30, dtype=np.uint8) * 8, (3, 24, 30))
    image, valid, scene = read_all(write_scene(ramp, transform=NORTH_UP), gsd=1.0)
    assert (scene.grid.height, scene.grid.width) == (48, 60)
    assert valid.all()
    # Halving the pixels of a linear ramp puts values a quarter of a step to both sides.
    expected = np.arange(60) * 4 - 2
    np.testing.assert_allclose(image[24, 2:-2, 0], expected[2:-2], atol=1)


def test_thumbnail(write_scene):
    path = write_scene(np.kron(pixels(6, 10), np.ones((1, 8, 8), np.uint8)))
    with open_scene(path, SceneOptions()) as scene:
        image, valid = scene.thumbnail(10)
    assert valid.all()
    np.testing.assert_array_equal(image, np.moveaxis(pixels(6, 10), 0, -1))


def test_any_raster_format(write_scene, tmp_path):
    path = write_scene(pixels())
    expected, *_ = read_all(path)
    for driver, name in (("VRT", "scene.vrt"), ("COG", "cog.tif"), ("PNG", "scene.png")):
        rasterio.shutil.copy(path, tmp_path / name, driver=driver)
        image, _, scene = read_all(str(tmp_path / name))
        np.testing.assert_array_equal(image, expected)
        assert scene.grid.transform.almost_equals(read_all(path)[2].grid.transform)


def test_plain_image_is_mapped_with_a_warning(tmp_path, caplog):
    path = str(tmp_path / "plain.png")
    Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels(), 0, -1))).save(path)
    assert read_all(path)[2].grid.crs is None
    assert "no coordinate reference system" in caplog.text
    with pytest.raises(UserError, match="needs a scene with a coordinate reference system"):
        check_scene(path, SceneOptions(gsd=1.0))


def test_not_a_raster(tmp_path):
    (tmp_path / "scene.tif").write_text("no raster")
    with pytest.raises(UserError, match=r"cannot open .*scene\.tif as a raster"):
        check_scene(str(tmp_path / "scene.tif"), SceneOptions())
    with pytest.raises(UserError, match=r"cannot open .*absent\.tif as a raster.*No such file"):
        check_scene(str(tmp_path / "absent.tif"), SceneOptions())


def test_values_that_are_no_measurements(write_scene):
    with pytest.raises(UserError, match="complex64, expected real numbers"):
        check_scene(write_scene(pixels(dtype=np.complex64)), SceneOptions())
    path = write_scene(pixels(count=1), colours=(ColorInterp.palette,))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0)})
    with pytest.raises(UserError, match="holds colour indices"):
        check_scene(path, SceneOptions())


@pytest.mark.parametrize("gsd", [None, 4.0])
def test_unreadable_tile(write_scene, gsd):
    path = write_scene(pixels(200, 300, high=255), compress="deflate", blockysize=8)
    with open(path, "r+b") as file:
        file.seek(0, 2)
        file.truncate(file.tell() * 2 // 3)
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(open_scene(path, SceneOptions(gsd=gsd)))
        with pytest.raises(UserError, match=r"cannot read .*scene\.tif"):
            scene.read(0, 0, scene.grid.height, scene.grid.width)
