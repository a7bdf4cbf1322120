"""Rasterised polygons: grids, holes, overlaps, repairs, other coordinate systems; and what is refused."""

import warnings
from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
from crossearth_data.own import plan, polygons  # pyright: ignore[reportMissingImports]
from miniatures import own
from rasterio.features import shapes
from rasterio.warp import transform_geom

from crossearth_jax.config import UserError

SCENES = Path(__file__).parents[1] / "scenes"
X, Y = 500_000, 5_000_000  # upper left corner of the miniature, whose pixels are 2 m
RASTER = 'images = "a.tif"\n'


def box(left, top, right, bottom):
    """Return the polygon of a rectangle given in pixels."""
    return shapely.box(X + 2 * left, Y - 2 * bottom, X + 2 * right, Y - 2 * top)


def labels_of(folder, shapes, kinds, rows='column = "kind"', size=(6, 8), **options):
    """Return the labels of an image of `size` with these polygons."""
    own.raster(folder / "a.tif", np.full((3, *size), 90, np.uint8))
    own.vector(folder / "p.gpkg", shapes, kinds, **options)
    made = plan.make_plan(own.domains(folder, f'{RASTER}labels = {{ vector = "p.gpkg", {rows} }}').domains["x"])
    (found,) = plan.examples(made.pieces["test"], 1)
    return found[2], made


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre(tmp_path):
    labels, _ = labels_of(tmp_path, [box(1.4, 0, 3.6, 2), box(3.6, 0, 5.4, 2)], ["building", "road"])
    expected = np.full((6, 8), 255)
    expected[:2, 1:4], expected[:2, 4] = 0, 1
    expected[:2, 1] = 0
    assert labels.tolist() == expected.tolist()


def test_holes_multipolygons_and_background(tmp_path):
    ring = box(0, 0, 4, 4).difference(box(1, 1, 3, 3))
    both = shapely.union_all([ring, box(6, 0, 8, 1)])
    assert both.geom_type == "MultiPolygon"
    labels, _ = labels_of(tmp_path, [both], ["building"], 'column = "kind", background = "land"')
    expected = np.full((6, 8), 2)
    expected[:4, :4], expected[1:3, 1:3], expected[0, 6:] = 0, 2, 0
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("rows", "middle"),
    [
        ('column = "kind"', 1),  # the later one of the file
        ('column = "kind", order = ["road", "building"]', 0),  # the class that is later in the list
        ('column = "kind", order = ["building"]', 0),  # a class that is not in the list lies below
        ('column = "kind", classes = { road = "land" }', 2),
        ('column = "kind", ignore = "building", classes = { building = "land" }', 255),  # ignored polygons lie on top
    ],
)
def test_order_of_overlapping_polygons(tmp_path, rows, middle):
    labels, _ = labels_of(tmp_path, [box(0, 0, 5, 6), box(3, 0, 8, 6)], ["building", "road"], rows)
    assert set(labels[:, 3:5].ravel().tolist()) == {middle}


def test_one_class_for_all_and_an_area_that_bounds_what_is_labelled(tmp_path):
    own.vector(tmp_path / "area.geojson", [box(0, 0, 4, 6)])
    rows = 'class = "building", background = "land", area = "area.geojson"'
    labels, _ = labels_of(tmp_path, [box(2, 2, 6, 4)], None, rows)
    expected = np.full((6, 8), 255)
    expected[:, :4], expected[2:4, 2:4] = 2, 0
    assert labels.tolist() == expected.tolist()


def test_invalid_rings_are_repaired_and_empty_ones_left_out_with_a_word(tmp_path):
    bow_tie = shapely.Polygon([(X, Y - 0.3), (X + 8, Y - 8.3), (X + 8, Y - 0.3), (X, Y - 8.3)])  # of 4 x 4 pixels
    labels, made = labels_of(tmp_path, [bow_tie, shapely.Polygon()], ["road", "road"])
    assert labels[:4, :4].tolist() == [[255] * 4, [1, 255, 255, 1], [1, 1, 1, 1], [1, 255, 255, 1]]
    assert made.notes == [f"{tmp_path / 'p.gpkg'}: 1 invalid polygons were repaired, 1 empty ones are left out"]


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "shp"])
def test_formats_and_numbers_as_classes(tmp_path, ending):
    own.raster(tmp_path / "a.tif", np.full((3, 6, 8), 90, np.uint8))
    fields = [np.array([3.0])]
    pyogrio.raw.write(
        tmp_path / f"p.{ending}",
        shapely.to_wkb([box(0, 0, 8, 6)]),
        fields,
        ["code"],
        geometry_type="Polygon",
        crs=own.UTM,
    )
    rows = f'{RASTER}labels = {{ vector = "p.{ending}", column = "code", classes = {{ 3 = "road" }} }}'
    made = plan.make_plan(own.domains(tmp_path, rows).domains["x"])
    (found,) = plan.examples(made.pieces["test"], 1)
    assert set(found[2].ravel().tolist()) == {1}
    assert tmp_path / f"p.{ending}" in made.files
    assert (tmp_path / "p.dbf" in made.files) == (ending == "shp")


def test_a_real_scene_comes_back_from_polygons_in_other_coordinates(tmp_path):
    """Water and land of a Sentinel-2 scene are vectorised, reprojected to degrees and rasterised again."""
    path = SCENES / "sentinel2_virginia.tif"
    with rasterio.open(path) as scene:
        _, green, _, infrared = scene.read().astype(np.float32)
        truth = np.where(green > infrared, 1, 2).astype(np.uint8)
        traced = [(shape, int(value)) for shape, value in shapes(truth, transform=scene.transform)]
        crs = scene.crs
    assert 0.1 < (truth == 1).mean() < 0.9
    degrees = [shapely.geometry.shape(transform_geom(crs, "EPSG:4326", shape)) for shape, _ in traced]
    kinds = [("", "water", "land")[value] for _, value in traced]
    own.vector(tmp_path / "truth.gpkg", degrees, kinds, crs="EPSG:4326")
    rows = (
        f'images = "{path}"\nlabels = {{ vector = "truth.gpkg", column = "kind" }}\nbands = "4,3,2"\n'
        'range = "p2,p98"\ntile = 128'
    )
    made = plan.make_plan(own.domains(tmp_path, rows, '["sand", "water", "land"]').domains["x"])
    found = np.zeros_like(truth)
    for piece in made.pieces["test"]:
        for (_, tile), (_, _, label) in zip(piece.tiles, plan.examples([piece], len(piece.tiles)), strict=True):
            found[tile.slices] = label
    assert sum(len(piece.tiles) for piece in made.pieces["test"]) == 16
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize(
    ("shapes", "kinds", "options", "rows", "expected"),
    [
        ([box(0, 0, 1, 1)], ["road"], {"crs": None}, 'column = "kind"', r"p.gpkg has no coordinate reference system"),
        ([box(0, 0, 1, 1)], ["road"], {}, 'column = "class"', r"p.gpkg has no column 'class'; it has kind"),
        ([box(0, 0, 1, 1)] * 3, ["road", "hut", "hut"], {}, 'column = "kind"',
         r"column 'kind' of .*p.gpkg has the unknown classes 'hut' \(2 polygons\); expected building, road, land; as"),
        ([shapely.LineString([(0, 0), (1, 1)])], ["road"], {}, 'column = "kind"',
         r"p.gpkg holds 1 of LineString, expected polygons"),
    ],
)  # fmt: skip
def test_vector_files_that_cannot_be_used(tmp_path, shapes, kinds, options, rows, expected):
    with warnings.catch_warnings(), pytest.raises(UserError, match=expected):
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        labels_of(tmp_path, shapes, kinds, rows, **options)


def test_a_file_that_is_no_vector_and_an_image_without_a_place(tmp_path):
    own.raster(tmp_path / "a.tif", np.full((3, 6, 8), 90, np.uint8))
    (tmp_path / "p.gpkg").write_bytes(b"nothing")
    rows = 'labels = { vector = "p.gpkg", column = "kind" }'
    with pytest.raises(UserError, match=r"cannot read the polygons of .*p.gpkg"):
        plan.make_plan(own.domains(tmp_path, RASTER + rows).domains["x"])
    own.picture(tmp_path / "b.png")
    own.vector(tmp_path / "p.gpkg", [box(0, 0, 1, 1)], ["road"])
    with pytest.raises(UserError, match=r"b.png is not georeferenced, which polygons need"):
        plan.make_plan(own.domains(tmp_path, 'images = "b.png"\n' + rows).domains["x"])


def test_one_of_several_layers(tmp_path):
    own.raster(tmp_path / "a.tif", np.full((3, 6, 8), 90, np.uint8))
    for name, kind in (("roads", "road"), ("houses", "building")):
        pyogrio.raw.write(
            tmp_path / "p.gpkg", shapely.to_wkb([box(0, 0, 8, 6)]), [np.array([kind], object)], ["kind"], layer=name,
            geometry_type="Polygon", crs=own.UTM, append=name == "houses",
        )  # fmt: skip
    rows = RASTER + 'labels = {{ vector = "p.gpkg", column = "kind"{} }}'
    with pytest.raises(UserError, match=r'p.gpkg has the layers roads, houses; choose one with layer = "roads"'):
        plan.make_plan(own.domains(tmp_path, rows.format("")).domains["x"])
    made = plan.make_plan(own.domains(tmp_path, rows.format(', layer = "houses"')).domains["x"])
    (found,) = plan.examples(made.pieces["test"], 1)
    assert set(found[2].ravel().tolist()) == {0}


def test_a_replaced_file_is_read_again(tmp_path):
    own.vector(tmp_path / "p.gpkg", [box(0, 0, 1, 1)], ["road"])
    assert polygons.read_polygons(tmp_path / "p.gpkg", "kind").names == ("road",)
    (tmp_path / "p.gpkg").unlink()
    own.vector(tmp_path / "p.gpkg", [box(0, 0, 1, 1)] * 2, ["land", "land"])
    assert polygons.read_polygons(tmp_path / "p.gpkg", "kind").names == ("land", "land")
