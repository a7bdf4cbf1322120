"""Rasterise polygons to labels on the grid of each image.

A pixel belongs to a polygon that contains its centre. Ignored polygons are drawn on top of all others. Of the others,
the polygon whose class comes later in `order` is drawn on top; classes that are not in `order` are drawn below the
classes that are. Among polygons of equal rank, the later one in the file is drawn on top.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import rasterio.features
import rasterio.warp
import shapely
from jaxtyping import Bool, UInt8
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.transform import Affine

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.benchmark.domains_file import PolygonRule, VectorLabels
from crossearth_jax.config import UserError

from ..tiles import Box
from .images import OwnImage, Raster

_AREAS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


@dataclasses.dataclass(frozen=True)
class Polygons:
    """The polygons of a vector file."""

    shapes: Any  # numpy array of shapely polygons and multipolygons, in `crs`
    names: tuple[str, ...]  # class names as written in the file; all "" without a column
    crs: CRS
    note: str  # a warning about repaired and omitted polygons; "" if there are none


def read_polygons(file: Path, column: str | None = None, layer: str | None = None) -> Polygons:
    """Read every polygon of a layer, or of the only layer; repair invalid polygons and omit empty ones.

    Raises:
      UserError: the file cannot be read, has no coordinate reference system, no such column or other geometries.
    """
    # The modification time is part of the cache key, because a file may be replaced within one process.
    return _read_polygons(file, column, layer, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_polygons(file: Path, column: str | None, layer: str | None, changed: int) -> Polygons:
    del changed
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(file)]
        if layer not in layers and (layer is not None or len(layers) != 1):
            raise UserError(
                f'{file} has the layers {", ".join(layers)}; choose one with layer = "{layers[0]}" in labels'
            )
        meta, _, encoded, values = pyogrio.raw.read(file, layer=layer, columns=None if column else [])
    except (DataSourceError, DataLayerError) as error:
        raise UserError(
            f"cannot read the polygons of {file} ({error}); expected GeoPackage, GeoJSON or Shapefile"
        ) from None
    if not meta["crs"]:
        raise UserError(
            f"{file} has no coordinate reference system, which georeferencing needs; assign one, e.g."
            " ogr2ogr -a_srs EPSG:32632 fixed.gpkg …"
        )
    fields = list(meta["fields"])
    if column is not None and column not in fields:
        raise UserError(f"{file} has no column '{column}'; it has {', '.join(fields) or 'none'}")
    names = [""] * len(encoded) if column is None else [_text(value) for value in values[fields.index(column)]]
    shapes = shapely.force_2d(shapely.from_wkb(encoded))
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    strange = ~empty & ~np.isin(shapely.get_type_id(shapes), _AREAS)
    if strange.any():
        kinds = sorted({shape.geom_type for shape in shapes[strange]})
        raise UserError(f"{file} holds {strange.sum()} of {', '.join(kinds)}, expected polygons; buffer or remove them")
    invalid = ~empty & ~shapely.is_valid(shapes)
    shapes[invalid] = [_areas(shape) for shape in shapely.make_valid(shapes[invalid])]
    empty |= shapely.is_missing(shapes) | shapely.is_empty(shapes)
    done = [f"{invalid.sum()} invalid polygons were repaired"] if invalid.any() else []
    done += [f"{empty.sum()} empty ones are left out"] if empty.any() else []
    kept = np.flatnonzero(~empty)
    return Polygons(
        shapes[kept],
        tuple(names[i] for i in kept),
        CRS.from_user_input(meta["crs"]),
        f"{file}: {', '.join(done)}" if done else "",
    )


def _text(value: Any) -> str:
    """Return a column's value as text; integers stored as floats without decimals ("3" for 3.0)."""
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def _areas(shape: Any) -> Any:
    """Return the polygons of a repaired geometry, which may also contain lines and points."""
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts)


@functools.lru_cache(maxsize=8)
def _placed(
    file: Path, column: str | None, layer: str | None, changed: int, crs: str
) -> tuple[Any, tuple[str, ...], shapely.STRtree]:
    """Return the polygons in the coordinate reference system `crs` (WKT), their names and a spatial index."""
    polygons = _read_polygons(file, column, layer, changed)
    shapes, target = polygons.shapes, CRS.from_wkt(crs)
    if target != polygons.crs:

        def moved(points: np.ndarray) -> np.ndarray:
            return np.stack(rasterio.warp.transform(polygons.crs, target, *points.T), axis=1)

        shapes = shapely.transform(shapes, moved)
    return shapes, polygons.names, shapely.STRtree(shapes)


@dataclasses.dataclass(frozen=True)
class PolygonLabels:
    """Labels of every image from one vector file."""

    given: VectorLabels

    def check(self) -> list[str]:
        """Read the files; return warnings about them.

        Raises:
          UserError: a file cannot be used, or a polygon's class is unknown.
        """
        polygons = read_polygons(self.given.file, self.given.column, self.given.layer)
        if self.given.column is not None:
            refuse_unknown(polygons.names, self.given.rule, f"column '{self.given.column}' of {self.given.file}")
        area = [] if self.given.area is None else [read_polygons(self.given.area).note]
        return [note for note in (polygons.note, *area) if note]

    def read(self, image: OwnImage, box: Box) -> UInt8[np.ndarray, "h w"]:
        """Return the train ids of a part of `image`."""
        assert isinstance(image, Raster)
        given, rule = self.given, self.given.rule
        window = image.grid.shifted(box.top, box.left, box.bottom - box.top, box.right - box.left)
        shapes, names = _within(window, given.file, given.column, given.layer)
        ids = [rule.names[name] for name in names] if given.single is None else [given.single] * len(shapes)
        size = window.height, window.width
        labels = burnt(shapes, ids, rule, size, window.transform)
        if given.area is not None:
            areas = _within(window, given.area)[0]
            labels[~_covered(areas, size, window.transform)] = IGNORE
        return labels


def _within(window: Any, file: Path, column: str | None = None, layer: str | None = None) -> tuple[Any, list[str]]:
    """Return the polygons whose bounding box touches the window, in the order of the file, and their names."""
    shapes, names, index = _placed(file, column, layer, file.stat().st_mtime_ns, window.crs.to_wkt())
    found = np.sort(index.query(shapely.box(*window.bounds())))
    return shapes[found], [names[i] for i in found]


def refuse_unknown(names: Sequence[str], rule: PolygonRule, where: str) -> None:
    """Raise a UserError if the name of a polygon is not a known class."""
    values, counts = np.unique(np.array([name for name in names if name not in rule.names], str), return_counts=True)
    if len(values):
        most = np.argsort(-counts, kind="stable")[:3]
        found = ", ".join(f"'{values[i]}' ({counts[i]} polygons)" for i in most)
        more = f" and {len(values) - 3} more" if len(values) > 3 else ""
        raise UserError(
            f"{where} has the unknown classes {found}{more}; expected {', '.join(rule.names)}; assign them in"
            f' labels with classes = {{ "{values[most[0]]}" = "…" }} or ignore = ["{values[most[0]]}"]'
        )


def burnt(
    shapes: Sequence[Any], ids: Sequence[int], rule: PolygonRule, size: tuple[int, int], transform: Affine
) -> UInt8[np.ndarray, "h w"]:
    """Rasterise polygons with their train ids; the module docstring gives the drawing order."""
    height = {label: place for place, label in enumerate(rule.order, 1)} | {IGNORE: len(rule.order) + 1}
    drawn = sorted(zip(shapes, ids, strict=True), key=lambda one: height.get(one[1], 0))
    if not drawn:
        return np.full(size, rule.background, np.uint8)
    return rasterio.features.rasterize(drawn, size, fill=rule.background, transform=transform, dtype=np.uint8)


def _covered(shapes: Sequence[Any], size: tuple[int, int], transform: Affine) -> Bool[np.ndarray, "h w"]:
    if not len(shapes):
        return np.zeros(size, bool)
    return np.asarray(rasterio.features.rasterize(shapes, size, transform=transform, dtype=np.uint8)) > 0


def area_of(ring: Sequence[float], where: str) -> Any:
    """Return the polygon of x, y, x, y, … in pixels from the corner of the image; repair it if it is invalid.

    Raises:
      UserError: it has fewer than three corners.
    """
    if len(ring) < 6 or len(ring) % 2:
        raise UserError(f"{where} has a polygon of {len(ring)} numbers, expected x and y of three corners or more")
    polygon = shapely.Polygon(np.reshape(np.array(ring, float), (-1, 2)))
    return polygon if polygon.is_valid else _areas(shapely.make_valid(polygon))


def traced(mask: UInt8[np.ndarray, "h w"], transform: Affine) -> list[Any]:
    """Return the pixels of a mask that are not 0 as polygons."""
    return [shape for shape, _ in rasterio.features.shapes(mask, mask > 0, transform=transform)]
