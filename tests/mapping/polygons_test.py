"""Polygons read back with an independent reader; their areas count the pixels."""

import numpy as np
import pyogrio
import pytest
import shapely

from crossearth_jax.mapping import polygons
from crossearth_jax.mapping.map_layers import NODATA, Legend

LEGEND = Legend(("land", "sea & <shore>"), ((10, 20, 255), (0, 128, 9)))


def ids(height=40, width=50):
    found = np.random.default_rng(0).integers(0, 2, (height // 5, width // 5), np.uint8).repeat(5, 0).repeat(5, 1)
    found[8:20, 10:30] = NODATA
    return found


def read(path):
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


@pytest.mark.parametrize(("part", "batch"), [(4096, 50_000), (16, 3)])
def test_areas_are_those_of_the_pixels(write_scene, tmp_path, monkeypatch, part, batch):
    monkeypatch.setattr(polygons, "PART", part)
    monkeypatch.setattr(polygons, "BATCH", batch)
    write_scene(ids()[None], nodata=NODATA)
    polygons.write_polygons(tmp_path / "scene.tif", tmp_path / "map.gpkg", LEGEND)
    meta, outlines, fields = read(tmp_path / "map.gpkg")
    assert meta["crs"] == "EPSG:32618"
    for i, name in enumerate(LEGEND.names):
        chosen = outlines[fields["class"] == i]
        assert shapely.area(chosen).sum() == pytest.approx(4 * (ids() == i).sum())  # pixels of 2 m by 2 m
        assert set(fields["name"][fields["class"] == i]) == {name}
    assert set(fields["colour"]) == {"#0a14ff", "#008009"}
    assert shapely.is_valid(outlines).all()
    assert shapely.area(shapely.union_all(outlines)) == pytest.approx(4 * (ids() != NODATA).sum())


def test_corner_of_a_polygon_lies_on_the_rotated_grid(write_scene, tmp_path):
    single = np.full((6, 8), NODATA, np.uint8)
    single[2, 3] = 1
    write_scene(single[None], nodata=NODATA)
    polygons.write_polygons(tmp_path / "scene.tif", tmp_path / "map.gpkg", LEGEND)
    _, outlines, _ = read(tmp_path / "map.gpkg")
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    corners = [(x * cos + y * sin, x * sin - y * cos) for x, y in [(6, 4), (8, 4), (8, 6), (6, 6)]]
    found = np.array(outlines[0].exterior.coords) - [500_000, 4_000_000]
    for corner in corners:
        assert np.abs(found - corner).max(1).min() < 1e-6
