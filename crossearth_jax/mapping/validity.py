"""Read bands of a raster together with the mask of valid pixels: those that hold data.

A pixel is valid if all of these hold in each of the chosen bands:

- its value is not the band's nodata value (each band may have its own);
- its value is finite, with or without a nodata tag;
- no mask excludes it: internal or external, of the dataset or of the band;
- no alpha band is zero (or NaN) at the pixel, whatever the type and number of the alpha bands. A band chosen with
  `--bands` is read as a measurement even if the file calls it alpha; files with near infrared in the fourth band often
  do.

GDAL's own `read_masks` uses only one of these sources. It ignores nodata if there is a mask. It ignores alpha if there
is a nodata value, if there are more than three bands, or if the type of the alpha band is not 8 or 16 bit.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Bool, Num
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from crossearth_jax.config import UserError


def read(
    path: str, dataset: DatasetReader, bands: tuple[int, int, int], window: Window
) -> tuple[Num[np.ndarray, "3 h w"], Bool[np.ndarray, "h w"]]:
    """Read three bands at full resolution, never from overviews.

    Returns:
      The values, in a data type that can hold those of all three bands, and the mask of valid pixels.

    Raises:
      UserError: the file cannot be read there.
    """
    try:
        by_band = {band: dataset.read(band, window=window) for band in sorted(set(bands))}
        known = [_known(values, dataset.nodatavals[band - 1]) for band, values in by_band.items()]
        known += [dataset.read_masks(band, window=window) > 0 for band in _masked_bands(dataset, bands)]
        known += [dataset.read(band, window=window) > 0 for band in _alpha_bands(dataset, bands)]
    except RasterioError as error:
        where = f"rows {window.row_off}..{window.row_off + window.height}"
        raise UserError(f"cannot read {path}, {where}: {error.__cause__ or error}") from None
    return np.stack([by_band[band] for band in bands]), functools.reduce(np.logical_and, known)


def _known(values: Num[np.ndarray, "h w"], nodata: float | None) -> Bool[np.ndarray, "h w"]:
    if values.dtype.kind != "f":
        # A nodata value that the data type cannot hold (-9999 or NaN for unsigned integers) marks no pixel.
        whole = nodata is not None and float(nodata).is_integer()
        return values != int(nodata) if whole else np.ones(values.shape, bool)  # type: ignore
    known = np.isfinite(values)
    if nodata is not None and math.isfinite(nodata):
        # With a tolerance, as in GDAL: the nodata tag is a decimal text and may be a rounded value.
        tolerance = 4 * np.finfo(values.dtype).eps * abs(nodata)
        with np.errstate(invalid="ignore", over="ignore"):
            known &= ~(np.abs(values.astype(np.float64) - nodata) <= tolerance)
    return known


def _masked_bands(dataset: DatasetReader, bands: tuple[int, int, int]) -> list[int]:
    """Return the bands whose masks must be read in addition to nodata values and alpha bands.

    A mask of the whole dataset is listed once. GDAL also reports NODATA_VALUES as such a mask: one nodata value per
    band, all of which a pixel must have to be nodata.
    """
    dataset_mask, band_masks = [], []
    for band in sorted(set(bands)):
        flags = set(dataset.mask_flag_enums[band - 1])
        if flags in ({MaskFlags.per_dataset}, {MaskFlags.per_dataset, MaskFlags.nodata}):
            dataset_mask = [band]
        elif not flags:
            band_masks.append(band)
    return dataset_mask + band_masks


def _alpha_bands(dataset: DatasetReader, bands: tuple[int, int, int]) -> list[int]:
    colours = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return [band for band, colour in colours if colour == ColorInterp.alpha and band not in bands]
