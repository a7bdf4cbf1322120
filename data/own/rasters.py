"""Read labels stored as rasters: values in windows, nodata, and the check that they align with their image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Bool, Integer
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from crossearth_jax.config import UserError

from ..tiles import Box
from .images import Raster

_SHIFT = 0.5  # pixels by which the corners of a label and its image may differ
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def read_label(path: Path, box: Box, *, colours: bool) -> tuple[Integer[np.ndarray, "h w *3"], Bool[np.ndarray, "h w"]]:
    """Read a part of a label raster, cropped to its extent, and the mask of its valid pixels.

    Raises:
      UserError: the file cannot be read, or does not contain integers (with `colours`: colours).
    """
    with _opened(path) as dataset:
        right, bottom = min(box.right, dataset.width), min(box.bottom, dataset.height)
        window = Window.from_slices((box.top, bottom), (box.left, right))
        kinds = {kind for kind in dataset.dtypes if np.dtype(kind).kind not in "iu"}
        if kinds:
            raise UserError(
                f"{path} holds {min(kinds)} numbers, expected integers; convert it: gdal_translate -ot Byte"
            )
        table = colours and dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        if colours and not table and (dataset.count < 3 or set(dataset.dtypes) != {"uint8"}):
            raise UserError(
                f"{path} has {dataset.count} bands of {dataset.dtypes[0]}, expected red, green and blue of 8 bit"
            )
        if not colours and dataset.count > 1:
            raise UserError(
                f"{path} has {dataset.count} bands, expected one with class numbers, or colours = {{…}} in labels"
            )
        try:
            values = dataset.read([1, 2, 3] if colours and not table else 1, window=window)
            known = dataset.dataset_mask(window=window) > 0
        except RasterioError as error:
            raise UserError(f"cannot read {path} ({error.__cause__ or error}); replace it") from None
        if table:
            values = np.array([dataset.colormap(1).get(i, (0, 0, 0))[:3] for i in range(256)], np.uint8)[values]
        return np.moveaxis(values, 0, -1) if colours and not table else values, known


def refuse_other_ground(path: Path, image: Raster) -> None:
    """Raise a UserError if a label raster is not aligned with its image.

    The check is skipped if one of them is not georeferenced.
    """
    with _opened(path) as dataset:
        if dataset.crs is None or dataset.transform.is_identity or not image.placed:
            return
        if dataset.crs != image.source.crs:
            raise UserError(
                f"{path} and its image {image.path} have different coordinate reference systems; warp the label onto"
                " the grid of the image: gdalwarp -r near"
            )
        corners = np.array([(0, 0), (dataset.width, dataset.height)])
        theirs = [~image.source.transform @ (dataset.transform @ tuple(corner)) for corner in corners]
        if np.abs(np.array(theirs) - corners).max() > _SHIFT:
            raise UserError(
                f"{path} does not have the extent of its image {image.path}; warp it onto the grid of the image:"
                " gdalwarp -r near"
            )


@contextmanager
def _opened(path: Path) -> Iterator[DatasetReader]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                yield dataset
        except RasterioError as error:
            raise UserError(f"cannot open {path} as a raster ({error}); replace or remove it") from None
