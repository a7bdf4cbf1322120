"""Whole maps compared with scoring the scene at once, and the files that remain after errors."""

import json
import os
import resource
import tracemalloc

import numpy as np
import pytest
import rasterio

from crossearth_jax.config import UserError
from crossearth_jax.mapping import mapper
from crossearth_jax.mapping.map_layers import NODATA, confidence
from crossearth_jax.mapping.mapper import MapOptions, map_scene
from crossearth_jax.mapping.scene import SceneOptions, open_scene

SCENES = ("landsat7_olinda", "sentinel2_virginia", "neon_osbs_029")


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def map_by(rule, path, out, scene_options=SceneOptions(), options=MapOptions(), tags=None, **windows):  # noqa: B008
    map_scene(rule.windows(**windows), rule.legend, path, out, scene_options, options, tags)


def at_once(rule, path, options):
    """Scores of the whole scene in one call, and its valid pixels."""
    with open_scene(path, options) as scene:
        image, valid = scene.read(0, 0, scene.grid.height, scene.grid.width)
    return rule.score(image[None], None)[0], valid


def speckled(height=150, width=190, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, 255, (3, height, width)).astype(dtype)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize(
    ("window", "stride", "sum_bytes", "blend"), [(48, None, 2**27, "mean"), (160, 100, 0, "taper")]
)
def test_map_of_a_real_scene_equals_scoring_it_at_once(rule, tmp_path, name, window, stride, sum_bytes, blend):
    rule.window = window
    options = SceneOptions(bands="3,2,1" if name != "neon_osbs_029" else None)
    path = f"data/scenes/{name}.tif"
    products = MapOptions(scores=True, confidence=True)
    windows = {"sum_bytes": sum_bytes} | ({"stride": stride} if stride else {})
    map_by(rule, path, tmp_path / "map.tif", options, products, blend=blend, **windows)
    assert set(rule.shapes) == {(4, window, window, 3)}  # one compilation, whatever the scene
    scores, valid = at_once(rule, path, options)
    np.testing.assert_allclose(
        np.moveaxis(read(tmp_path / "map_scores.tif"), 0, -1)[valid], scores[valid], rtol=2e-6, atol=1e-4
    )
    # The sums are rounded, so in a tie either class may win.
    top = np.sort(scores, -1)
    clear = valid & (top[..., -1] > top[..., -2] * 1.001)
    classes = read(tmp_path / "map.tif")[0]
    np.testing.assert_array_equal(classes[clear], scores.argmax(-1)[clear])
    np.testing.assert_array_equal(classes == NODATA, ~valid)
    np.testing.assert_allclose(read(tmp_path / "map_confidence.tif")[:, valid], confidence(scores)[:, valid], atol=2e-5)
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "map.tif") as found:
        assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)


@pytest.mark.parametrize(
    "layout",
    [
        {"blockysize": 1},
        {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"},
        {"tiled": True, "blockxsize": 128, "blockysize": 64, "interleave": "band"},
    ],
)
def test_blocks_of_the_file_change_nothing(rule, write_scene, tmp_path, layout):
    bands = speckled(dtype=np.uint16)
    options = MapOptions(scores=True)
    map_by(rule, write_scene(bands), tmp_path / "a.tif", options=options, stride=20)
    map_by(rule, write_scene(bands, **layout), tmp_path / "b.tif", options=options, stride=20)
    for suffix in ("", "_scores"):
        np.testing.assert_array_equal(read(tmp_path / f"a{suffix}.tif"), read(tmp_path / f"b{suffix}.tif"))


def test_batches_change_nothing(rule, write_scene, tmp_path):
    path = write_scene(speckled())
    for name, batch_size in (("a", 4), ("b", 7)):
        map_by(rule, path, tmp_path / f"{name}.tif", batch_size=batch_size)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_nodata_stays_and_empty_windows_are_not_scored(rule, write_scene, tmp_path):
    valid = np.zeros((400, 300), bool)
    valid[10:60, 200:290] = True
    path = write_scene(speckled(400, 300), mask=valid)
    map_by(rule, path, tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0] != NODATA, valid)
    assert sum(shape[0] for shape in rule.shapes) < 20  # of 117 windows


def test_map_of_another_resolution_and_of_a_part(rule, write_scene, tmp_path):
    path = write_scene(np.repeat(speckled(40, 50), 6, 1).repeat(6, 2))  # pixels of 2 m in squares of 12 m
    options = SceneOptions(gsd=12.0)
    map_by(rule, path, tmp_path / "map.tif", options)
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "map.tif") as found:
        assert found.transform.almost_equals(scene.transform @ rasterio.Affine.scale(6))
        assert found.shape == (40, 50)
        np.testing.assert_allclose(found.bounds, scene.bounds)
        # A box around the centre of the rotated grid covers only part of it.
        x, y = scene.transform @ (150, 120)
    scores, _ = at_once(rule, path, options)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], scores.argmax(-1))
    map_by(rule, path, tmp_path / "part.tif", SceneOptions(gsd=12.0, bounds=(x - 40, y - 40, x + 40, y + 40)))
    with rasterio.open(tmp_path / "part.tif") as part, rasterio.open(tmp_path / "map.tif") as whole:
        column, row = map(round, ~whole.transform @ (part.transform @ (0, 0)))
        assert 0 < column and 0 < row and part.width < 15
        expected = whole.read(1)[row : row + part.height, column : column + part.width]
        np.testing.assert_array_equal(part.read(1), expected)


def test_everything_that_can_be_written(rule, write_scene, tmp_path, caplog):
    caplog.set_level("INFO")
    path = write_scene(speckled(dtype=np.uint16), tags={"AREA_OR_POINT": "Point"})
    options = MapOptions(scores=True, confidence=True, polygons=True, preview=True)
    map_by(
        rule, path, tmp_path / "out" / "map.tif", SceneOptions(value_range=(0.0, 300.0)), options, {"CHECKPOINT": "x"}
    )
    names = {"map.tif", "map.tif.aux.xml", "map.json", "map_scores.tif", "map_confidence.tif", "map.gpkg", "map.png"}
    assert set(os.listdir(tmp_path / "out")) == names
    with rasterio.open(tmp_path / "out" / "map.tif") as dataset:
        tags = dataset.tags()
    assert tags["STRETCH"] == "0..300, 0..300, 0..300 to 0..255 (given range)"
    assert (tags["CHECKPOINT"], tags["BANDS"], tags["WINDOW"]) == ("x", "1,2,3", "48x48")
    assert (tags["STRIDE"], tags["AREA_OR_POINT"]) == ("32", "Point")
    found = json.loads((tmp_path / "out" / "map.json").read_text("utf-8"))
    assert found["metadata"].items() <= tags.items() and {"DATE", "CLASS_AREAS"} <= found["metadata"].keys()
    assert (found["map"], found["crs"], found["height"], found["width"]) == ("map.tif", "EPSG:32618", 150, 190)
    counts = np.bincount(read(tmp_path / "out" / "map.tif").ravel(), minlength=4)
    assert [entry["pixels"] for entry in found["classes"]] == counts.tolist()
    # A pixel of 2 m x 2 m on the central meridian of the UTM zone, where the scale is 0.9996.
    areas = [entry["hectares"] for entry in found["classes"]]
    np.testing.assert_allclose(areas, counts * 4 / 0.9996**2 / 10_000, rtol=1e-4, atol=1e-4)
    assert "windows in" in caplog.text


def peak_of(rule, path, out):
    tracemalloc.start()
    map_by(rule, path, out, batch_size=1, sum_bytes=96 * 300 * 4 * 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_scene(rule, write_scene, tmp_path):
    """Memory of NumPy arrays only; the memory of the process is measured by `benchmarks/map_memory.py`."""
    rule.window = 96
    peaks = []
    for height in (600, 600, 3000):  # the first scene fills caches; all are larger than a tile
        path = write_scene(speckled(height, 600))
        peaks.append(peak_of(rule, path, tmp_path / "map.tif"))
    # The smallest layer of a map, its classes, has a byte per pixel. The threads that read and write ahead change the
    # peak by about 100 kB from run to run.
    smallest_layer = (3000 - 600) * 600
    assert peaks[2] - peaks[1] < 0.6 * smallest_layer


def break_after(rule, batches, error):
    """Make a rule fail in the middle of a scene."""
    score = rule.score

    def failing(images, valid):
        if len(rule.shapes) == batches:
            raise error
        return score(images, valid)

    rule.score = failing


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("device lost"), UserError("x")])
def test_interruption_leaves_nothing_and_touches_nothing(rule, write_scene, tmp_path, error):
    path = write_scene(speckled())
    out = tmp_path / "maps" / "map.tif"
    out.parent.mkdir()
    out.write_text("the map of yesterday")
    break_after(rule, 2, error)
    with pytest.raises(type(error)):
        map_by(rule, path, out)
    assert os.listdir(out.parent) == ["map.tif"] and out.read_text() == "the map of yesterday"


def test_what_a_killed_run_left_is_removed(rule, write_scene, tmp_path):
    path, out = write_scene(speckled()), tmp_path / "maps" / "map.tif"
    break_after(rule, 2, SystemExit())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapper.shutil, "rmtree", lambda *_, **__: None)  # a killed process does not clean up
        with pytest.raises(SystemExit):
            map_by(rule, path, out)
    assert os.listdir(out.parent) == [".map.tif.partial"]
    map_by(type(rule)(), path, out)
    assert set(os.listdir(out.parent)) == {"map.tif", "map.tif.aux.xml", "map.json"}


def test_a_tile_that_cannot_be_read(rule, write_scene, tmp_path):
    path = write_scene(speckled(400, 300), compress="deflate", blockysize=16)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(UserError, match=r"cannot read .*scene\.tif, rows \d+"):
        map_by(rule, path, tmp_path / "maps" / "map.tif")
    assert os.listdir(tmp_path / "maps") == []


def test_a_scene_without_data(rule, write_scene, tmp_path):
    path = write_scene(np.zeros((3, 100, 100), np.uint8), nodata=0)
    with pytest.raises(UserError, match="no valid pixel"):
        map_by(rule, path, tmp_path / "map.tif")
    assert os.listdir(tmp_path) == ["scene.tif"]


def test_output_that_cannot_be_written(rule, write_scene, tmp_path):
    path = write_scene(speckled())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*map\.tif: .*Not a directory"):
        map_by(rule, path, tmp_path / "file" / "map.tif")


@pytest.mark.parametrize("limit", [1_000, 100_000, 1_050_000])
def test_a_full_disk(rule, write_scene, tmp_path, limit):
    """A limit on file sizes makes writing fail; the error must be found although GDAL only logs it."""
    path = write_scene(speckled(300, 300))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*map\.tif"):
            map_by(rule, path, tmp_path / "maps" / "map.tif", options=MapOptions(scores=True, polygons=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "maps") == []
