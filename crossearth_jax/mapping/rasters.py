"""Writing layers as Cloud Optimized GeoTIFFs that carry their classes' names and colours.

Blocks arrive in any shape, so they first go to an uncompressed tiled file; GDAL's COG driver then makes overviews
and the final file from it. rasterio writes no category names or attribute tables, but GDAL copies them from a
virtual raster, whose XML we can extend: GDAL stores the table inside the GeoTIFF (since 3.11) and the category
names in a `.aux.xml` beside it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from crossearth_jax.mapping.grid import Grid
from crossearth_jax.mapping.layers import NODATA, Layer, Legend
from crossearth_jax.mapping.mosaic import Block

TILE = 512  # side of the tiles of every file

# Columns of the attribute table: name, GDAL's field type (0 integer, 2 string) and usage (5 the pixel value,
# 2 its name, 6..8 red, green, blue).
_TABLE = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))


class LayerWriter:
    """Collects the blocks of one layer; `layer_writer` makes one."""

    def __init__(self, layer: Layer, dataset: DatasetWriter):
        self._layer, self._dataset = layer, dataset

    def write(self, block: Block) -> None:
        """Writes the layer's values of a block; what is never written is nodata."""
        values = self._layer.values(block)
        height, width = values.shape[1:]
        rows, columns = (block.top, block.top + height), (block.left, block.left + width)
        self._dataset.write(values, window=Window.from_slices(rows, columns))


@contextlib.contextmanager
def layer_writer(
    path: Path, layer: Layer, legend: Legend, grid: Grid, tags: Mapping[str, str]
) -> Iterator[LayerWriter]:
    """Opens the intermediate, uncompressed file of a layer."""
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
        yield LayerWriter(layer, dataset)


def write_cog(source: Path, target: Path, layer: Layer, legend: Legend) -> None:
    """Turns an intermediate file into a Cloud Optimized GeoTIFF with overviews."""
    bridge = source.with_suffix(".vrt")
    with _may_lack_reference():
        rasterio.shutil.copy(source, bridge, driver="VRT")
        if layer.categorical:
            _name_classes(bridge, legend)
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


def _name_classes(virtual: Path, legend: Legend) -> None:
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
        for value in (i, name, *colour):
            ElementTree.SubElement(row, "F").text = str(value)
    tree.write(virtual)


@contextlib.contextmanager
def _may_lack_reference() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the map of a plain image is a plain image
        yield
