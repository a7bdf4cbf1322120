"""Reading a scene as 8-bit RGB windows and a mask of valid pixels, on the grid the model works on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator

import numpy as np
import rasterio
from absl import logging
from einops import rearrange
from jaxtyping import Bool, Num, UInt8
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from crossearth_jax.config import UserError
from crossearth_jax.mapping import radiometry
from crossearth_jax.mapping.bands import Raster, band_names, select_bands
from crossearth_jax.mapping.grid import Bounds, Grid
from crossearth_jax.mapping.radiometry import Stretch
from crossearth_jax.ops.normalization import MEAN

FILL = np.rint(MEAN).astype(np.uint8)  # colour of missing pixels: nearly the zero with which training pads images
CACHE_BYTES = 256 * 2**20  # of decoded blocks that GDAL keeps; its own default grows with the machine

Image = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How scenes are read."""

    bands: str | None = None  # see `bands.select_bands`
    value_range: tuple[float, float] | None = None  # values that become 0 and 255; None: by percentiles
    percentiles: tuple[float, float] | None = None  # None: 8 bit as it is, anything else by `radiometry.PERCENTILES`
    gsd: float | None = None  # ground sampling distance in metres that the scene is resampled to; None keeps its own
    bounds: Bounds | None = None  # part of the scene to map; None is all of it


class Scene:
    """An open scene; `open_scene` makes one."""

    def __init__(
        self, path: str, dataset: Raster, bands: tuple[int, int, int], stretch: Stretch, bounds: Bounds | None
    ):
        self.path, self.stretch = path, stretch
        self._dataset, self._bands = dataset, bands
        whole = _grid(dataset)
        self._top, self._left, height, width = whole.part(bounds) if bounds else (0, 0, whole.height, whole.width)
        self.grid = whole.shifted(self._top, self._left, height, width)
        names = band_names(dataset)
        self.band_names = tuple(names[band - 1] or str(band) for band in bands)
        self.pixel_is_point = dataset.tags().get("AREA_OR_POINT") == "Point"

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Image, Mask]:
        """Reads a window of the grid; it may reach beyond the last row and column, where nothing is valid.

        Returns:
          The image, with `FILL` where it is not valid, and which pixels are valid: those with data in any of the
          three bands (neither nodata, masked, transparent nor NaN).

        Raises:
          UserError: the file cannot be read there.
        """
        image, valid = np.full((height, width, 3), FILL), np.zeros((height, width), bool)
        inside = np.s_[: self.grid.height - top, : self.grid.width - left]
        image[inside], valid[inside] = self._image(top, left, *valid[inside].shape)
        return image, valid

    def thumbnail(self, longest: int) -> tuple[Image, Mask]:
        """The whole grid thinned to at most `longest` pixels a side."""
        size = self.grid.height, self.grid.width
        return self._image(0, 0, *size, shape=_thinned(size, longest))

    def _image(
        self, top: int, left: int, height: int, width: int, shape: tuple[int, int] | None = None
    ) -> tuple[Image, Mask]:
        top, left = self._top + top, self._left + left
        window = Window.from_slices((top, top + height), (left, left + width))
        values, known = _read(self.path, self._dataset, self._bands, window, shape or (height, width))
        valid = known.any(0)
        image = np.where(known, self.stretch(values), np.uint8(0))
        return rearrange(np.where(valid, image, FILL[:, None, None]), "c h w -> h w c"), valid


def check_scene(path: str, options: SceneOptions) -> None:
    """Makes sure that a scene can be opened with these options, without reading pixels.

    Raises:
      UserError: it cannot.
    """
    with _selected(path, options) as (dataset, _):
        grid = _grid(dataset)
        grid = grid if options.gsd is None else grid.resampled(options.gsd)
        if options.bounds is not None:
            grid.part(options.bounds)


@contextlib.contextmanager
def open_scene(path: str, options: SceneOptions) -> Iterator[Scene]:
    """Opens a raster of any kind GDAL reads.

    Raises:
      UserError: it is no raster, or the options do not fit it.
    """
    with _selected(path, options) as (dataset, bands), contextlib.ExitStack() as stack:
        stretch = _stretch(path, dataset, bands, options)
        if options.gsd is not None:
            dataset = stack.enter_context(_resampled(dataset, options.gsd))
        scene = Scene(path, dataset, bands, stretch, options.bounds)
        if scene.grid.crs is None:
            logging.warning("%s has no coordinate reference system, nor will its map", path)
        yield scene


@contextlib.contextmanager
def _selected(path: str, options: SceneOptions) -> Iterator[tuple[Raster, tuple[int, int, int]]]:
    """The open dataset and the bands chosen of it."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), _open(path) as dataset:
        bands = select_bands(dataset, options.bands)
        _check_values(path, dataset, bands)
        yield dataset, bands


def _open(path: str) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # we say it in our own words
        try:
            dataset = rasterio.open(path)
        except RasterioError as error:
            raise UserError(f"cannot open {path} as a raster: {error}") from None
    if dataset.count == 0:
        inner = f"; name one of its parts, e.g. {dataset.subdatasets[0]}" if dataset.subdatasets else ""
        dataset.close()
        raise UserError(f"{path} holds no bands{inner}")
    return dataset


def _check_values(path: str, dataset: Raster, bands: tuple[int, int, int]) -> None:
    for band in bands:
        kind, colour = dataset.dtypes[band - 1], dataset.colorinterp[band - 1]
        if kind.startswith("complex"):
            raise UserError(f"band {band} of {path} is {kind}, expected real numbers; convert it to amplitudes first")
        if colour == ColorInterp.palette:
            raise UserError(
                f"band {band} of {path} holds colour indices, expected measured values; "
                "expand it first: gdal_translate -expand rgb"
            )


def _stretch(path: str, dataset: Raster, bands: tuple[int, int, int], options: SceneOptions) -> Stretch:
    if options.value_range is not None:
        return radiometry.fixed(*options.value_range)
    if options.percentiles is None and {dataset.dtypes[band - 1] for band in bands} == {"uint8"}:
        return radiometry.AS_IS
    size = dataset.height, dataset.width
    window = Window.from_slices((0, dataset.height), (0, dataset.width))
    sample = _read(path, dataset, bands, window, _thinned(size, radiometry.SAMPLE_SIDE))
    return radiometry.percentile(*sample, options.percentiles or radiometry.PERCENTILES)


def _resampled(dataset: Raster, gsd: float) -> WarpedVRT:
    grid, wanted = _grid(dataset), _grid(dataset).resampled(gsd)
    coarser = wanted.height * wanted.width < grid.height * grid.width
    # Without an alpha band the warper forgets a mask that is neither alpha nor nodata.
    masked = dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
    return WarpedVRT(
        dataset,
        crs=wanted.crs,
        transform=wanted.transform,
        height=wanted.height,
        width=wanted.width,
        resampling=Resampling.average if coarser else Resampling.bilinear,
        add_alpha=masked,
    )


def _read(
    path: str, dataset: Raster, bands: tuple[int, int, int], window: Window, shape: tuple[int, int]
) -> tuple[Num[np.ndarray, "3 h w"], Bool[np.ndarray, "3 h w"]]:
    """Values and which of them are data, thinned to `shape`."""
    try:
        values = dataset.read(bands, window=window, out_shape=(3, *shape))
        known = dataset.read_masks(bands, window=window, out_shape=(3, *shape)) > 0
    except RasterioError as error:
        where = f"rows {window.row_off}..{window.row_off + window.height}"
        raise UserError(f"cannot read {path}, {where}: {error.__cause__ or error}") from None
    return values, known & np.isfinite(values) if values.dtype.kind == "f" else known


def _grid(dataset: Raster) -> Grid:
    return Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)


def _thinned(size: tuple[int, int], longest: int) -> tuple[int, int]:
    step = max(1.0, max(size) / longest)
    return math.ceil(size[0] / step), math.ceil(size[1] / step)
