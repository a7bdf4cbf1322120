"""The class map as polygons in a GeoPackage."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from jaxtyping import Int, Shaped
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.features import shapes
from rasterio.io import DatasetReader
from rasterio.windows import Window

from crossearth_jax.mapping.map_layers import NODATA, Legend

PART = 4096  # side in pixels of the parts in which a map is traced
BATCH = 50_000  # polygons written together


def write_polygons(class_map: Path, target: Path, legend: Legend) -> None:
    """Write the class map as polygons: each connected region of one class becomes one polygon along pixel borders.

    Pixels are connected if they share a side. Maps with a side of more than `PART` pixels are traced in parts, which
    bounds memory and cuts polygons at the borders of the parts. Fields: `class` (id), `name`, `colour` ("#rrggbb").

    Raises:
      OSError: the file cannot be written.
    """
    names = np.array(legend.names, object)
    colours = np.array(["#{:02x}{:02x}{:02x}".format(*colour) for colour in legend.palette], object)
    with rasterio.open(class_map) as dataset, warnings.catch_warnings():
        # The map of a plain image has no CRS; `scene.open_scene` has already warned about it.
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        for number, (geometry, ids) in enumerate(_parts(dataset)):
            try:
                pyogrio.raw.write(
                    target,
                    geometry,
                    [ids, names[ids], colours[ids]],
                    ["class", "name", "colour"],
                    layer="classes",
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=dataset.crs.to_wkt() if dataset.crs else None,
                    append=number > 0,
                )
            except (DataSourceError, DataLayerError) as error:
                raise OSError(str(error)) from None


def _parts(dataset: DatasetReader) -> Iterator[tuple[Shaped[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
    """Yield batches of polygons as well-known binary, with their class ids."""
    for top, left in itertools.product(range(0, dataset.height, PART), range(0, dataset.width, PART)):
        rows, columns = (top, min(top + PART, dataset.height)), (left, min(left + PART, dataset.width))
        window = Window.from_slices(rows, columns)
        values = dataset.read(1, window=window)
        found = shapes(values, values != NODATA, transform=dataset.window_transform(window))
        for batch in itertools.batched(found, BATCH):
            outlines = [shapely.geometry.shape(outline) for outline, _ in batch]
            yield shapely.to_wkb(np.array(outlines, object)), np.array([value for _, value in batch], np.int32)
