"""Write layers as Cloud Optimized GeoTIFFs; class maps contain the names and colours of the classes.

A `ScoredArea` can have any shape, so areas are first written to an uncompressed tiled GeoTIFF. GDAL's COG driver then
creates the overviews and the final file from it. rasterio cannot write category names and attribute tables, but GDAL
copies them from a virtual raster (VRT), to whose XML they are added here. GDAL stores the table inside the GeoTIFF
(since version 3.11) and the category names in an `.aux.xml` file beside it.

GDAL may write pixels only when a file is closed, and rasterio only logs errors that occur then, so a full disk leaves
holes in the file. Therefore pixels are counted when they are written and again in the finished file. The attribute
table of a class map contains the counts.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Int, Num
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from crossearth_jax.inference.windows import ScoredArea
from crossearth_jax.mapping.grid import Grid
from crossearth_jax.mapping.map_layers import NODATA, Layer, Legend

TILE = 512  # side of the tiles of every file

# Columns of the attribute table: name, GDAL field type (0 integer, 1 real, 2 string) and usage (5 pixel value, 2 name,
# 6..8 red, green, blue, 1 pixel count). The count is a real number because it may exceed GDAL's 32-bit integers.
_TABLE = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Count", 1, 1))


class LayerWriter:
    """Writes the areas of one layer to an intermediate file; created by `layer_writer`."""

    def __init__(self, path: Path, layer: Layer, dataset: DatasetWriter):
        self.path, self.layer, self._dataset = path, layer, dataset
        self.counts = np.zeros(NODATA if layer.categorical else 1, np.int64)  # values written: per class, or in total

    def write(self, area: ScoredArea) -> None:
        """Write the layer's values of an area; pixels that are never written are nodata."""
        values = self.layer.values(area)
        self.counts += _counts(self.layer, values)
        height, width = values.shape[1:]
        rows, columns = (area.top, area.top + height), (area.left, area.left + width)
        self._dataset.write(values, window=Window.from_slices(rows, columns))


def _counts(layer: Layer, values: Num[np.ndarray, "bands h w"]) -> Int[np.ndarray, " n"]:
    if layer.categorical:
        return np.bincount(values.ravel(), minlength=NODATA + 1)[:NODATA]
    return np.array([values.size - np.isnan(values).sum()])


@contextlib.contextmanager
def layer_writer(
    path: Path, layer: Layer, legend: Legend, grid: Grid, tags: Mapping[str, str]
) -> Iterator[LayerWriter]:
    """Open the intermediate, uncompressed file of a layer for writing."""
    with (
        _may_lack_reference(),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=grid.width,
            height=grid.height,
            count=len(layer.bands),
            dtype=layer.dtype,
            nodata=layer.nodata,
            crs=grid.crs,
            transform=grid.transform,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            interleave="band",
            sparse_ok=True,
            bigtiff="IF_SAFER",
        ) as dataset,
    ):
        dataset.update_tags(**tags)
        for band, name in enumerate(layer.bands, 1):
            dataset.set_band_description(band, name)
        if layer.categorical:
            colours = {i: (*colour, 255) for i, colour in enumerate(legend.palette)}
            dataset.write_colormap(1, {**colours, NODATA: (0, 0, 0, 0)})
        yield LayerWriter(path, layer, dataset)


def write_cog(written: LayerWriter, target: Path, legend: Legend, tags: Mapping[str, str] | None = None) -> None:
    """Convert a closed intermediate file to a Cloud Optimized GeoTIFF with overviews.

    Args:
      written: the intermediate file.
      target: path of the file to write.
      legend: names and colours of the classes, for a layer of class ids.
      tags: added to the metadata, besides those given to `layer_writer`.

    Raises:
      OSError: the file cannot be written, or does not contain every pixel.
    """
    layer, bridge = written.layer, written.path.with_suffix(".vrt")
    with _may_lack_reference(), _as_os_error():
        with rasterio.open(written.path, "r+") as dataset:
            dataset.update_tags(**(tags or {}))
        rasterio.shutil.copy(written.path, bridge, driver="VRT")
        if layer.categorical:
            _name_classes(bridge, legend, written.counts)
        rasterio.shutil.copy(
            bridge,
            target,
            driver="COG",
            compress="DEFLATE",
            predictor="NO" if layer.categorical else "YES",
            blocksize=TILE,
            overview_resampling="MODE" if layer.categorical else "AVERAGE",
            sparse_ok=True,
            bigtiff="IF_SAFER",
            num_threads="ALL_CPUS",
        )
        with rasterio.open(target) as dataset:
            parts = (dataset.read(window=window) for _, window in dataset.block_windows(1))
            found = sum((_counts(layer, values) for values in parts), np.zeros_like(written.counts))
    if not np.array_equal(found, written.counts):
        raise OSError(
            f"{target.name} contains {found.sum()} of the {written.counts.sum()} values written; free disk space and "
            "try again"
        )


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # GDAL's own errors have no public class
        raise OSError(str(error.__cause__ or error)) from None


def _name_classes(virtual: Path, legend: Legend, counts: Int[np.ndarray, " n"]) -> None:
    tree = ElementTree.parse(virtual)
    band = tree.getroot().find("VRTRasterBand")
    assert band is not None
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in legend.names:
        ElementTree.SubElement(categories, "Category").text = name
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for i, (name, kind, usage) in enumerate(_TABLE):
        field = ElementTree.SubElement(table, "FieldDefn", index=str(i))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ElementTree.SubElement(field, key).text = str(value)
    for i, (name, colour) in enumerate(zip(legend.names, legend.palette, strict=True)):
        row = ElementTree.SubElement(table, "Row", index=str(i))
        for value in (i, name, *colour, counts[i]):
            ElementTree.SubElement(row, "F").text = str(value)
    tree.write(virtual)


@contextlib.contextmanager
def _may_lack_reference() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the map of a plain image has no CRS either
        yield
