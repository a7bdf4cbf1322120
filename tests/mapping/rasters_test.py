"""The files as other programs read them: byte structure, names, colours, grid."""

import struct
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth_jax.inference.windows import ScoredArea
from crossearth_jax.mapping import rasters
from crossearth_jax.mapping.grid import Grid
from crossearth_jax.mapping.map_layers import NODATA, Legend, class_layer, score_layer

LEGEND = Legend(("land", "sea & <shore>", "forêt"), ((10, 20, 255), (0, 128, 9), (7, 7, 7)))
ROTATED = Affine.translation(500_000, 4_000_000) @ Affine.rotation(20) @ Affine.scale(2, -2)
SIZE = 1100, 1300


def one_hot(ids):
    return np.eye(3, dtype=np.float32)[ids]


def ids():
    return np.random.default_rng(0).integers(0, 3, SIZE) // 2 * 2


def valid():
    found = np.ones(SIZE, bool)
    found[:600, :700] = False  # contains a whole tile
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A class map and scores of one scene, written in blocks that do not match the tiles."""
    folder = tmp_path_factory.mktemp("written")
    grid = Grid(CRS.from_epsg(32618), ROTATED, *SIZE)
    for layer in (class_layer(), score_layer(LEGEND)):
        source = folder / f"blocks{layer.suffix}.tif"
        with rasters.layer_writer(source, layer, LEGEND, grid, {"STRIDE": "7", "AREA_OR_POINT": "Point"}) as writer:
            for left, right in ((0, 777), (777, 1300)):
                for top in range(0, 1100, 99):
                    part = np.s_[top : top + 99, left:right]
                    writer.write(ScoredArea(top, left, one_hot(ids()[part]), valid()[part]))
        rasters.write_cog(writer, folder / f"map{layer.suffix}.tif", LEGEND)
    return folder


def test_values_and_grid(written):
    with rasterio.open(written / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), np.where(valid(), ids(), NODATA))
        assert dataset.transform.almost_equals(ROTATED)
        assert dataset.crs == CRS.from_epsg(32618)
        assert dataset.nodata == NODATA
        assert dataset.tags()["STRIDE"] == "7" and dataset.tags()["AREA_OR_POINT"] == "Point"
    with rasterio.open(written / "map_scores.tif") as dataset:
        expected = np.where(valid(), np.moveaxis(one_hot(ids()), -1, 0), np.nan)
        np.testing.assert_array_equal(dataset.read(), expected)
        assert dataset.descriptions == LEGEND.names
        assert np.isnan(dataset.nodata)


def directories(path):
    """For each image of a classic TIFF: offset of its directory, its size, offset of its first tile."""
    data = path.read_bytes()
    order, magic, offset = struct.unpack_from("<2sHI", data)
    assert (order, magic) == (b"II", 42)
    found = []
    while offset:
        (count,) = struct.unpack_from("<H", data, offset)
        entries = (struct.unpack_from("<HHII", data, offset + 2 + 12 * i) for i in range(count))
        tags = {tag: (number, value) for tag, _, number, value in entries}
        number, place = tags[324]  # TileOffsets
        tiles = struct.unpack_from(f"<{number}I", data, place) if number > 1 else (place,)
        size = tuple(tags[tag][1] & 0xFFFF for tag in (257, 256))
        found.append((offset, size, min(tile for tile in tiles if tile), tags[322][1] & 0xFFFF))
        (offset,) = struct.unpack_from("<I", data, offset + 2 + 12 * count)
    return found


@pytest.mark.parametrize("name", ["map.tif", "map_scores.tif"])
def test_bytes_are_in_the_order_of_a_cloud_optimized_geotiff(written, name):
    found = directories(written / name)
    offsets, sizes, tiles, sides = zip(*found, strict=True)
    assert sizes == (SIZE, (550, 650), (275, 325))
    assert set(sides) == {rasters.TILE}
    assert list(offsets) == sorted(offsets) and offsets[-1] < min(tiles)  # all directories before any pixel
    assert list(tiles) == sorted(tiles, reverse=True)  # the coarsest overview first
    with rasterio.open(written / name) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_overviews_show_the_most_frequent_class(written):
    with rasterio.open(written / "map.tif") as dataset:
        half = dataset.read(1, out_shape=(550, 650))
    assert set(np.unique(half)) == {0, 2, NODATA}  # an average of 0 and 2 would give 1
    assert (half[:300, :350] == NODATA).all()


def test_colours_and_names(written):
    with rasterio.open(written / "map.tif") as dataset:
        colours = dataset.colormap(1)
        assert [colours[i][:3] for i in range(3)] == list(LEGEND.palette)
        assert colours[NODATA] == (0, 0, 0, 0)
    # GDAL shows names and the attribute table in the XML of a virtual raster.
    rasterio.shutil.copy(written / "map.tif", written / "view.vrt", driver="VRT")
    band = ElementTree.parse(written / "view.vrt").getroot().find("VRTRasterBand")
    assert band.find("ColorInterp").text == "Palette"
    assert [name.text for name in band.find("CategoryNames")] == list(LEGEND.names)
    table = band.find("GDALRasterAttributeTable")
    assert [field.find("Name").text for field in table.iter("FieldDefn")] == [
        *("Value", "Class", "Red", "Green", "Blue", "Count"),
    ]
    counts = [str((ids()[valid()] == i).sum()) for i in range(3)]
    assert [[cell.text for cell in row] for row in table.iter("Row")] == [
        ["0", "land", "10", "20", "255", counts[0]],
        ["1", "sea & <shore>", "0", "128", "9", counts[1]],
        ["2", "forêt", "7", "7", "7", counts[2]],
    ]


def test_the_attribute_table_is_inside_the_file(written, tmp_path):
    (tmp_path / "alone.tif").write_bytes((written / "map.tif").read_bytes())  # without its .aux.xml
    rasterio.shutil.copy(tmp_path / "alone.tif", tmp_path / "view.vrt", driver="VRT")
    assert "sea &amp; &lt;shore&gt;" in (tmp_path / "view.vrt").read_text("utf-8")


@pytest.mark.parametrize("layer", [class_layer(), score_layer(LEGEND)])
def test_pixels_that_got_lost_are_noticed(tmp_path, layer):
    grid = Grid(None, Affine.identity(), 600, 600)
    with rasters.layer_writer(tmp_path / "blocks.tif", layer, LEGEND, grid, {}) as writer:
        writer.write(ScoredArea(0, 0, one_hot(ids()[:600, :600]), np.ones((600, 600), bool)))
        writer.counts[0] += 1  # as if a pixel had not been written
    with pytest.raises(OSError, match=r"map\.tif contains \d+ of the \d+ values written; free disk space"):
        rasters.write_cog(writer, tmp_path / "map.tif", LEGEND)
