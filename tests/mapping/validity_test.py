"""Every way in which files mark missing data, compared with masks built by hand, without and with resampling."""

from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from crossearth_jax.mapping.scene import FILL, SceneOptions, open_scene

SIZE = 24, 30
NODATA = (3, 5, 7, 9, 11)  # of band 1, 2, ...; valid values are 20 to 200


def empty_half():
    """Half of the scene; its border runs through pixels of a grid that is twice as coarse."""
    hole = np.zeros(SIZE, bool)
    hole[:, 15:] = True
    return hole


def block():
    hole = np.zeros(SIZE, bool)
    hole[4:12, 2:9] = True
    return hole


def specks():
    return np.random.default_rng(1).random(SIZE) < 0.01


# Source of validity -> whether it works with integers, and the holes that the file marks by each means.
SOURCES = {
    "nothing": (True, {}),
    "nodata": (True, {"nodata": empty_half()}),
    "nodata of each band": (True, {"band nodata": empty_half()}),
    "list of nodata values": (True, {"nodata list": empty_half()}),
    "alpha": (True, {"alpha": empty_half()}),
    "internal mask": (True, {"internal": empty_half()}),
    "external mask": (True, {"external": empty_half()}),
    "NaN": (False, {"nan": empty_half()}),
    "NaN with its tag": (False, {"nan": empty_half(), "nan tag": None}),
    "scattered NaN": (False, {"nan": specks()}),
    "scattered nodata": (True, {"nodata": specks()}),
    "NaN and nodata": (False, {"nan": block(), "nodata": empty_half()}),
    "nodata and alpha": (True, {"nodata": block(), "alpha": empty_half()}),
    "alpha and nodata of each band": (True, {"alpha": block(), "band nodata": empty_half()}),
    "internal mask and nodata": (True, {"internal": block(), "nodata": empty_half()}),
    "external mask and nodata": (True, {"external": block(), "nodata": empty_half()}),
    "alpha and internal mask": (True, {"alpha": empty_half(), "internal": block()}),
    "alpha and external mask": (True, {"alpha": block(), "external": empty_half()}),
    "NaN, nodata, alpha and mask": (
        False,
        {"nan": specks(), "nodata": block(), "alpha": np.roll(block(), 12, 0), "internal": np.roll(block(), 17, 1)},
    ),
}


def write(folder, bands, marks):
    """Write bands with holes that are marked as in `marks`."""
    count, kind = len(bands), bands.dtype
    bands = bands.copy()
    if "nan" in marks:
        bands[:, marks["nan"]] = np.nan
    for name in ("nodata", "band nodata", "nodata list"):
        for number in range(count if name in marks else 0):
            bands[number][marks[name]] = NODATA[number if name != "nodata" else 0]
    if "alpha" in marks:
        opaque = 1 if kind.kind == "f" else np.iinfo(kind).max
        bands = np.concatenate([bands, np.where(marks["alpha"], 0, opaque).astype(kind)[None]])
    path = str(folder / "scene.tif")
    profile = {
        "driver": "GTiff",
        "count": len(bands),
        "height": SIZE[0],
        "width": SIZE[1],
        "dtype": kind,
        "crs": "EPSG:32618",
        "transform": Affine(2, 0, 500_000, 0, -2, 4_000_000),
        "nodata": NODATA[0] if "nodata" in marks else np.nan if "nan tag" in marks else None,
        "photometric": "minisblack",
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="internal" in marks), rasterio.open(path, "w", **profile) as dataset:
        colours = [ColorInterp.gray] + [ColorInterp.undefined] * (len(bands) - 1)
        dataset.colorinterp = [*colours[: len(bands) - 1], ColorInterp.alpha] if "alpha" in marks else colours
        dataset.write(bands)
        if "nodata list" in marks:
            dataset.update_tags(NODATA_VALUES=" ".join(map(str, NODATA[:count])))
        for name in ("internal", "external"):
            if name in marks:
                dataset.write_mask(~marks[name])
    return with_nodata_of_each_band(folder, path) if "band nodata" in marks else path


def with_nodata_of_each_band(folder, path):
    """A virtual raster, since a GeoTIFF has the same nodata value for all bands."""
    virtual = folder / "scene.vrt"
    rasterio.shutil.copy(path, virtual, driver="VRT")
    tree = ElementTree.parse(virtual)
    for band, value in zip(tree.getroot().findall("VRTRasterBand"), NODATA, strict=False):
        if band.findtext("ColorInterp") != "Alpha":
            ElementTree.SubElement(band, "NoDataValue").text = str(value)
    tree.write(virtual)
    return str(virtual)


def block_sums(values):
    return values.reshape(*values.shape[:-2], SIZE[0] // 2, 2, SIZE[1] // 2, 2).sum((-3, -1))


INTEGERS, REALS = ("uint8", "int16", "uint16", "int32"), ("float16", "float32", "float64")
CASES = [
    (source, kind) for source, (integers, _) in SOURCES.items() for kind in (*(INTEGERS if integers else ()), *REALS)
]


@pytest.mark.parametrize("count", [1, 3, 4, 5])
@pytest.mark.parametrize(("source", "kind"), CASES)
def test_no_class_where_there_is_no_data(tmp_path, source, kind, count):
    _, marks = SOURCES[source]
    data = np.random.default_rng(0).integers(20, 200, (count, *SIZE)).astype(kind)
    path = write(tmp_path, data, marks)
    expected = ~np.any([hole for hole in marks.values() if hole is not None] or [np.zeros(SIZE)], axis=0)
    names = "1,2,3" if count >= 3 else "1"
    shown = np.stack([data[int(name) - 1] for name in names.split(",")] * (3 if count < 3 else 1)).astype(float)

    image, valid = read(path, SceneOptions(bands=names, value_range=(0.0, 255.0)))
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(image, np.where(expected[..., None], np.moveaxis(shown, 0, -1), FILL))

    image, valid = read(path, SceneOptions(bands=names, value_range=(0.0, 255.0), gsd=4.0))
    weights = block_sums(expected)
    np.testing.assert_array_equal(valid, weights >= 2)
    means = block_sums(shown * expected) / np.maximum(weights, 1)
    rounded = np.where(valid[..., None], np.moveaxis(np.rint(means), 0, -1), FILL)
    np.testing.assert_array_equal(image, rounded)


def read(path, options):
    with open_scene(path, options) as scene:
        return scene.read(0, 0, scene.grid.height, scene.grid.width)


@pytest.mark.parametrize("source", ["nodata", "alpha", "internal mask", "NaN", "NaN, nodata, alpha and mask"])
def test_percentiles_are_those_of_the_valid_pixels(tmp_path, source):
    _, marks = SOURCES[source]
    data = np.random.default_rng(0).integers(1000, 9000, (3, *SIZE)).astype("float32")
    path = write(tmp_path, data, marks)
    valid = ~np.any(list(marks.values()), axis=0)
    with open_scene(path, SceneOptions(bands="1,2,3")) as scene:
        np.testing.assert_allclose(scene.stretch.ranges, np.percentile(data[:, valid], (2, 98), axis=1).T, rtol=1e-6)


def test_a_pixel_is_valid_where_every_chosen_band_is(write_scene):
    bands = np.full((4, 4, 6), 100, np.float32)
    bands[0, 1, 1], bands[2, 1, 2], bands[3, 1, 3] = np.nan, -9, -9
    path = write_scene(bands, nodata=-9)
    for chosen, missing in (("1,2,3", [1, 2]), ("2,3,4", [2, 3]), ("2", [])):
        _, valid = read(path, SceneOptions(bands=chosen, value_range=(0.0, 255.0)))
        assert np.flatnonzero(~valid[1]).tolist() == missing
        assert valid[[0, 2, 3]].all()


def test_a_chosen_band_is_a_measurement_even_if_the_file_calls_it_alpha(write_scene):
    """By default rasterio and GDAL mark near infrared as alpha in 8-bit files of red, green, blue and near infrared."""
    bands = np.full((4, 4, 6), 100, np.uint8)
    bands[3, 2, 2] = 0
    path = write_scene(bands)
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    assert (~read(path, SceneOptions())[1]).sum() == 1
    image, valid = read(path, SceneOptions(bands="4,1,2"))
    assert valid.all() and image[2, 2].tolist() == [0, 100, 100]


def test_half_transparent_pixels_are_data(write_scene):
    bands = np.full((2, 4, 6), 100, np.uint8)
    bands[1, 0], bands[1, 1] = 0, 1
    path = write_scene(bands, colours=(ColorInterp.gray, ColorInterp.alpha))
    np.testing.assert_array_equal(read(path, SceneOptions())[1].all(1), [False, True, True, True])


@pytest.mark.parametrize(
    ("kind", "nodata", "marked"),
    [
        ("uint16", 65535, 65535),
        ("int16", -32768, -32768),
        ("int64", -9999, -9999),
        ("float32", -3.4028234663852886e38, np.finfo(np.float32).min),
        ("float32", -3.4028231e38, np.finfo(np.float32).min),  # as ESRI's programs round it
        ("float32", np.inf, np.inf),
        ("float64", 1e-3, 1e-3),
    ],
)
def test_nodata_at_the_ends_of_types(write_scene, kind, nodata, marked):
    bands = np.full((1, 4, 6), 100).astype(kind)
    bands[0, 1, 2] = marked
    _, valid = read(write_scene(bands, nodata=nodata), SceneOptions(value_range=(0.0, 255.0)))
    assert np.argwhere(~valid).tolist() == [[1, 2]]


def test_nodata_that_the_type_cannot_hold_marks_nothing(tmp_path, write_scene):
    path = write_scene(np.zeros((3, *SIZE), np.uint8))
    rasterio.shutil.copy(path, tmp_path / "scene.vrt", driver="VRT")
    for value in ("-9999", "nan", "0.5"):
        tree = ElementTree.parse(tmp_path / "scene.vrt")
        for band in tree.getroot().findall("VRTRasterBand"):
            ElementTree.SubElement(band, "NoDataValue").text = value
        tree.write(tmp_path / "tagged.vrt")
        assert read(str(tmp_path / "tagged.vrt"), SceneOptions())[1].all()


def test_infinite_values_are_no_data(write_scene):
    bands = np.full((3, 4, 6), 100, np.float32)
    bands[1, 1, 2], bands[2, 3, 4] = np.inf, -np.inf
    _, valid = read(write_scene(bands), SceneOptions(value_range=(0.0, 255.0)))
    assert np.argwhere(~valid).tolist() == [[1, 2], [3, 4]]


def test_one_percent_of_missing_pixels_costs_nothing_when_averaged(write_scene):
    """With a hundred pixels averaged to one, two of three new pixels contain a missing pixel."""
    bands = np.random.default_rng(0).integers(20, 200, (3, 200, 300)).astype(np.float32)
    bands[:, np.random.default_rng(1).random((200, 300)) < 0.01] = np.nan
    path = write_scene(bands, transform=Affine(2, 0, 500_000, 0, -2, 4_000_000))
    image, valid = read(path, SceneOptions(gsd=20.0, value_range=(0.0, 255.0)))
    assert valid.all()
    means = np.nanmean(bands.reshape(3, 20, 10, 30, 10).swapaxes(2, 3).reshape(3, 20, 30, 100), -1, dtype=np.float64)
    np.testing.assert_array_equal(image, np.moveaxis(np.rint(means), 0, -1))
