"""Reading of scenes: stretches, parts, other grids, unusual and broken files; masks are in `validity_test`."""

import contextlib
import os
import tracemalloc

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.transform import Affine

from crossearth_jax.config import UserError
from crossearth_jax.mapping import radiometry
from crossearth_jax.mapping import scene as scene_module
from crossearth_jax.mapping.scene import FILL, SceneOptions, check_scene, open_scene, scene_files

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)


def pixels(height=24, width=30, count=3, dtype=np.uint8, low=1, high=250):
    return np.random.default_rng(0).integers(low, high, (count, height, width)).astype(dtype)


def read_all(path, **options):
    with open_scene(path, SceneOptions(**options)) as scene:
        return *scene.read(0, 0, scene.grid.height, scene.grid.width), scene


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
    # float32 against float64: a value halfway between two steps may be rounded to either.
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
    # With half the pixel size, the values of a linear ramp lie a quarter of a step to each side.
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
    with pytest.raises(UserError, match="holds indices of a colour table"):
        check_scene(path, SceneOptions())
    inks = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow)
    rasterio.shutil.copy(write_scene(pixels(), "inks.tif"), path.replace(".tif", ".vrt"), driver="VRT")
    with rasterio.open(path.replace(".tif", ".vrt"), "r+") as dataset:
        dataset.colorinterp = inks
    with pytest.raises(UserError, match=r"band 1 of .* is cyan, expected red, green, blue"):
        check_scene(path.replace(".tif", ".vrt"), SceneOptions())


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


def test_bands_of_different_types(write_scene, tmp_path):
    """Virtual rasters that combine bands of a satellite image with another product have such bands."""
    bands = pixels()
    for number, kind in enumerate(("uint8", "uint16", "float32")):
        write_scene(bands[number : number + 1].astype(kind), f"{number}.tif")
    source = '<SimpleSource><SourceFilename relativeToVRT="1">{}.tif</SourceFilename></SimpleSource>'
    kinds = zip(range(3), ("Byte", "UInt16", "Float32"), strict=True)
    stacked = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i + 1}">{source.format(i)}</VRTRasterBand>' for i, kind in kinds
    )
    (tmp_path / "stack.vrt").write_text(f'<VRTDataset rasterXSize="30" rasterYSize="24">{stacked}</VRTDataset>')
    image, valid, _ = read_all(str(tmp_path / "stack.vrt"), value_range=(0.0, 255.0))
    assert valid.all()
    np.testing.assert_array_equal(image, np.moveaxis(bands, 0, -1))
    _, _, scene = read_all(str(tmp_path / "stack.vrt"))  # not all are 8 bit, so all are stretched
    np.testing.assert_allclose(scene.stretch.ranges, np.percentile(bands.astype(float), (2, 98), axis=(1, 2)).T)


def test_a_source_that_is_missing(write_scene, tmp_path):
    path = write_scene(pixels())
    rasterio.shutil.copy(path, tmp_path / "scene.vrt", driver="VRT")
    os.remove(path)
    with pytest.raises(UserError, match=r"cannot (open|read) .*scene\.vrt"):
        read_all(str(tmp_path / "scene.vrt"))


def test_overviews_are_never_read(write_scene):
    """Overviews may ignore nodata, or may have been made before the pixels were changed."""
    bands = pixels(600, 400, dtype=np.uint16, high=5000)
    path = write_scene(bands, transform=NORTH_UP, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    expected = [*read_all(path)[:2], *read_all(path, gsd=12.0)[:2], *thumbnail(path)]
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8])
    for level in range(3):
        with rasterio.open(path, "r+", overview_level=level) as dataset:
            dataset.write(np.zeros((3, dataset.height, dataset.width), np.uint16))
    found = [*read_all(path)[:2], *read_all(path, gsd=12.0)[:2], *thumbnail(path)]
    with rasterio.open(path) as dataset:
        assert not dataset.read(1, out_shape=(100, 100)).any()  # GDAL would read the overview
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def thumbnail(path):
    with open_scene(path, SceneOptions()) as scene:
        return scene.thumbnail(64)


def test_percentiles_of_a_large_scene_come_from_all_its_valid_pixels(write_scene, monkeypatch):
    """A few valid pixels are found wherever they are, although the values are sampled."""
    monkeypatch.setattr(scene_module, "PART", (64, 100))
    monkeypatch.setattr(radiometry, "SAMPLE", 5000)
    bands = np.zeros((3, 300, 400), np.uint16)
    bands[:, 111:114, 222:225] = np.arange(1, 10).reshape(3, 3)
    _, _, scene = read_all(write_scene(bands, nodata=0), percentiles=(0.0, 100.0))
    assert scene.stretch.ranges == ((1, 9),) * 3
    bands = pixels(300, 400, dtype=np.uint16, high=5000)
    _, _, scene = read_all(write_scene(bands, nodata=0))
    expected = np.percentile(bands.reshape(3, -1), (2, 98), axis=1).T
    np.testing.assert_allclose(scene.stretch.ranges, expected, atol=60)  # one percent of 5,000 values is 50
    bands[:, :, ::64] = 60_000  # a pattern that sampling every 64th pixel would miss, or see only
    _, _, scene = read_all(write_scene(bands, nodata=0), percentiles=(0.0, 100.0))
    assert [high for _, high in scene.stretch.ranges] == [60_000] * 3
    _, _, scene = read_all(write_scene(bands, nodata=0), percentiles=(0.0, 95.0))
    assert max(high for _, high in scene.stretch.ranges) < 5000


def test_memory_of_percentiles_does_not_grow_with_the_scene(write_scene, monkeypatch):
    monkeypatch.setattr(scene_module, "PART", (64, 100))
    monkeypatch.setattr(radiometry, "SAMPLE", 5000)
    path = write_scene(pixels(2000, 1000, dtype=np.uint16, high=5000))
    with open_scene(path, SceneOptions()) as scene:
        tracemalloc.start()
        assert scene.stretch.ranges[0][1] == pytest.approx(4900, abs=60)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**21  # the valid pixels have 12 million bytes


def test_metres_on_the_ground(write_scene, caplog):
    """At 60 degrees north, where web Mercator enlarges lengths by two."""
    mercator = Affine(2, 0, 0, 0, -2, 8_399_738)
    _, _, scene = read_all(write_scene(pixels(), crs="EPSG:3857", transform=mercator), gsd=4.0)
    assert (scene.grid.height, scene.grid.width) == (6, 8)  # 24 x 30 pixels of 1.0008 x 1.0025 m
    assert "a pixel is 2 x 2 m in its coordinates but 1.003 x 1.001 m on the ground; --gsd=4 means" in caplog.text
    caplog.clear()
    read_all(write_scene(pixels(), transform=NORTH_UP), gsd=4.0)
    assert "on the ground" not in caplog.text


def test_part_of_a_scene_is_said_to_be_one(write_scene, caplog):
    world = write_scene(pixels(18, 36), crs="EPSG:4326", transform=Affine(10, 0, 0, 0, -10, 90))
    image, _, scene = read_all(world, bounds=(-90.0, 10.0, -60.0, 30.0))
    assert scene.grid.bounds() == (270, 10, 300, 30)
    np.testing.assert_array_equal(image, np.moveaxis(pixels(18, 36)[:, 6:8, 27:30], 0, -1))
    assert "does not cover" not in caplog.text
    read_all(world, bounds=(-20.0, 10.0, 50.0, 30.0))
    assert "does not cover all of the bounds -20, 10, 50, 30; its map covers 0, 10, 50, 30" in caplog.text
    caplog.clear()
    read_all(world, bounds=(20.0, 10.0, 50.0, 30.0))
    assert "does not cover" not in caplog.text


def test_a_constant_band_is_said_to_be_one(write_scene, caplog):
    bands = pixels(dtype=np.uint16)
    bands[1] = 7
    image, _, _ = read_all(write_scene(bands, names=("red", "green", "blue")))
    assert not image[..., 1].any()
    assert "both percentiles of band green (7) have the same value" in caplog.text and "--range" in caplog.text


def place(path, **places):
    """Georeference a scene by other means than a geotransform; virtual rasters support all of them."""
    virtual = path.replace(".tif", ".vrt")
    with pytest.warns(NotGeoreferencedWarning):
        rasterio.shutil.copy(path, virtual, driver="VRT")
        with rasterio.open(virtual, "r+") as dataset:
            for name, value in places.items():
                setattr(dataset, name, value)
    return virtual


def test_scenes_that_are_on_no_grid(tmp_path):
    path = str(tmp_path / "plain.tif")
    Image.fromarray(np.moveaxis(pixels(), 0, -1).copy()).save(path)
    points = [GroundControlPoint(row, 0, 500_000, 4_000_000 - 2 * row) for row in range(4)]
    with pytest.raises(UserError, match=r"georeferenced by ground control points, expected a geotransform; .*gdalwarp"):
        check_scene(place(path, gcps=(points, CRS.from_epsg(32618))), SceneOptions())
    one = [1.0] + [0.0] * 19
    rpcs = RPC(0.0, 1.0, 0.0, 1.0, one, one, 0.0, 1.0, 0.0, 1.0, one, one, 0.0, 1.0)
    with pytest.raises(UserError, match="georeferenced by rational polynomial coefficients"):
        check_scene(place(path, rpcs=rpcs), SceneOptions())


def test_pixels_without_area(write_scene):
    with pytest.raises(UserError, match="have no area"):
        check_scene(write_scene(pixels(), transform=Affine(0, 0, 500_000, 0, 0, 4_000_000)), SceneOptions())


def test_a_few_bits_per_pixel(write_scene):
    path = write_scene(pixels(high=4), nbits=2, photometric="minisblack")
    with pytest.raises(UserError, match=r"has 2 bit per pixel, expected 8 or more; .*--range=0,3"):
        check_scene(path, SceneOptions())
    image, _, _ = read_all(path, value_range=(0.0, 3.0))
    np.testing.assert_array_equal(image, np.moveaxis(pixels(high=4), 0, -1) * 85)


@pytest.mark.parametrize("transform", [Affine(2, 0, 500_000, 0, 2, 4_000_000), Affine(0, 2, 500_000, 2, 0, 4_000_000)])
def test_scenes_with_south_or_west_up_stay_as_they_are(write_scene, transform):
    bands = pixels()
    path = write_scene(bands, transform=transform)
    image, _, scene = read_all(path, gsd=4.0)
    assert scene.grid.transform.almost_equals(transform @ Affine.scale(2))
    means = np.rint(bands.reshape(3, 12, 2, 15, 2).mean((2, 4)))
    np.testing.assert_array_equal(image, np.moveaxis(means, 0, -1))
    x, y = transform @ (10, 4)
    image, _, scene = read_all(path, bounds=(x, y, x + 8, y + 8))
    np.testing.assert_array_equal(image, np.moveaxis(bands[:, 4:8, 10:14], 0, -1))


@pytest.mark.parametrize(
    "layout", [{"bigtiff": "yes"}, {"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}]
)
def test_large_and_compressed_files(write_scene, layout):
    bands = pixels(64, 80, dtype=np.uint16, high=4000)
    image, valid, _ = read_all(write_scene(bands, "scene.bin", transform=NORTH_UP, **layout), value_range=(0.0, 4080.0))
    assert valid.all()
    np.testing.assert_array_equal(image, np.moveaxis(np.rint(bands / 16), 0, -1))


def test_a_format_that_gdal_lacks(tmp_path):
    (tmp_path / "scene.ecw").write_bytes(b"ecw" * 100)
    with pytest.raises(UserError, match=r"cannot open .*scene\.ecw as a raster: .*; .*convert it to GeoTIFF"):
        check_scene(str(tmp_path / "scene.ecw"), SceneOptions())


def test_files_of_a_scene(write_scene, tmp_path):
    path = write_scene(pixels(), "tile.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.ones((24, 30), bool))
    rasterio.shutil.copy(path, tmp_path / "inner.vrt", driver="VRT")
    (tmp_path / "outer.vrt").write_text((tmp_path / "inner.vrt").read_text().replace(">tile.tif<", ">inner.vrt<"))
    outer = {str(tmp_path / name) for name in ("outer.vrt", "inner.vrt", "tile.tif")}
    assert outer <= scene_files(str(tmp_path / "outer.vrt"))
    assert scene_files(path) == {path, f"{path}.msk"}
    assert scene_files("absent.tif") == {"absent.tif"}
