"""The summary of a class map: the area of each class, and what the map was made with.

It is written as JSON beside the map and into the metadata of the map; `docs/howto/maps.md` describes the fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from jaxtyping import Float, Int

from crossearth_jax.mapping.grid import Grid
from crossearth_jax.mapping.map_layers import NODATA, Legend

SCHEMA_VERSION = 1  # of the JSON; it changes when a field is removed or changes its meaning
HECTARE = 10_000  # square metres


@dataclasses.dataclass(frozen=True)
class ClassSizes:
    """Pixels and areas on the ground of the classes of a map, in the order of the class ids."""

    pixels: Int[np.ndarray, " k"]
    hectares: Float[np.ndarray, " k"] | None  # None if the position of the map on Earth is unknown
    nodata: int  # pixels without a class

    @property
    def percent(self) -> Float[np.ndarray, " k"]:
        """Share of each class in the area with a class, or in its pixels if areas are unknown; 0 without classes."""
        sizes = self.pixels if self.hectares is None else self.hectares
        return 100 * sizes / max(sizes.sum(), np.finfo(float).tiny)


def class_sizes(class_map: Path, grid: Grid, classes: int) -> ClassSizes:
    """Measure the classes of a map, block by block.

    Args:
      class_map: raster of class ids on `grid`.
      grid: gives the areas of the pixels (`Grid.pixel_areas`).
      classes: number of classes.
    """
    pixels, areas, located = np.zeros(NODATA + 1, np.int64), np.zeros(NODATA + 1), True
    with rasterio.open(class_map) as dataset:
        for _, window in dataset.block_windows(1):
            ids = dataset.read(1, window=window)
            if (ids == NODATA).all():
                pixels[NODATA] += ids.size
                continue
            pixels += np.bincount(ids.ravel(), minlength=NODATA + 1)
            sizes = grid.pixel_areas(window.row_off, window.col_off, *ids.shape)
            if sizes is None:
                located = False
            else:
                areas += np.bincount(ids.ravel(), sizes.ravel(), NODATA + 1)
    located &= bool(np.isfinite(areas[:classes]).all())
    return ClassSizes(pixels[:classes], areas[:classes] / HECTARE if located else None, int(pixels[NODATA]))


def summary(name: str, grid: Grid, legend: Legend, sizes: ClassSizes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of the JSON file beside a map.

    Args:
      name: file name of the map.
      grid: grid of the map.
      legend: names and colours of its classes.
      sizes: areas of its classes.
      metadata: the tags of the map.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "map": name,
        "crs": grid.crs.to_string() if grid.crs else None,
        "height": grid.height,
        "width": grid.width,
        "ground_resolution": grid.pixel_size(),
        "nodata_pixels": sizes.nodata,
        "classes": [
            {"id": number, "name": label, "colour": "#{:02x}{:02x}{:02x}".format(*colour), **size}
            for number, (label, colour, size) in enumerate(
                zip(legend.names, legend.palette, _by_class(sizes), strict=True)
            )
        ],
        "metadata": dict(metadata),
    }


def area_tag(legend: Legend, sizes: ClassSizes) -> str:
    """Return the areas as one line of text for the metadata of a raster: name, hectares and percent of each class."""
    return "; ".join(
        f"{name}: " + ("" if size["hectares"] is None else f"{size['hectares']} ha, ") + f"{size['percent']} %"
        for name, size in zip(legend.names, _by_class(sizes), strict=True)
    )


def _by_class(sizes: ClassSizes) -> Sequence[dict[str, int | float | None]]:
    """Return pixels, hectares (to a square metre) and percent of each class."""
    hectares = [None] * len(sizes.pixels) if sizes.hectares is None else sizes.hectares.round(4).tolist()
    return [
        {"pixels": int(count), "hectares": area, "percent": share}
        for count, area, share in zip(sizes.pixels, hectares, sizes.percent.round(4).tolist(), strict=True)
    ]
