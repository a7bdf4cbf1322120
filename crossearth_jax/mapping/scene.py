"""Read a scene as 8-bit RGB windows with masks of valid pixels, on the grid on which it is mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Iterator

import numpy as np
import rasterio
from absl import logging
from einops import rearrange
from jaxtyping import Bool, Num, Shaped, UInt8
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from crossearth_jax.config import UserError
from crossearth_jax.mapping import radiometry, validity
from crossearth_jax.mapping.bands import band_names, select_bands
from crossearth_jax.mapping.grid import Bounds, Grid, text
from crossearth_jax.mapping.radiometry import Stretch
from crossearth_jax.mapping.remote import gdal_name, gdal_options
from crossearth_jax.mapping.resampling import Axis, resample
from crossearth_jax.ops.normalization import MEAN

FILL = np.rint(MEAN).astype(np.uint8)  # colour of invalid pixels: the mean colour, about 0 after normalisation
CACHE_BYTES = 256 * 2**20  # GDAL's cache of decoded blocks; by default it grows with the machine's memory
PART = (512, 8192)  # rows and columns of the file that are read together when large parts of it are needed
# Bands of other colour models than RGB. They are refused, since the scene must be converted to RGB first.
NO_MEASUREMENTS = (
    *(ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness),
    *(ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black),
    *(ColorInterp.Y, ColorInterp.Cb, ColorInterp.Cr),
)

Image = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How a scene is read."""

    bands: str | None = None  # see `bands.select_bands`
    value_range: tuple[float, float] | None = None  # values that become 0 and 255; None: see `percentiles`
    # Percentiles that become 0 and 255; None leaves 8-bit scenes unchanged and uses `radiometry.PERCENTILES` otherwise.
    percentiles: tuple[float, float] | None = None
    gsd: float | None = None  # ground resolution in metres to which the scene is resampled; None does not resample
    bounds: Bounds | None = None  # part of the scene to map; None maps all of it


class Scene:
    """An open scene, read as 8-bit RGB; created by `open_scene`."""

    def __init__(self, path: str, dataset: DatasetReader, bands: tuple[int, int, int], options: SceneOptions):
        self.path = path
        self._dataset, self._bands, self._options = dataset, bands, options
        self.source = source = _grid(path, dataset)
        whole = source if options.gsd is None else source.resampled(options.gsd)
        scale = ~source.transform @ whole.transform  # without rotation: both grids have the same orientation
        self._rows, self._columns = Axis(source.height, scale.e), Axis(source.width, scale.a)
        window = whole.part(options.bounds) if options.bounds else (0, 0, whole.height, whole.width)
        self._top, self._left = window[:2]
        self.grid = whole.shifted(*window)
        names = band_names(dataset)
        self.band_names = tuple(names[band - 1] or str(band) for band in bands)
        self.kinds = {dataset.dtypes[band - 1] for band in bands}  # data types of the chosen bands
        self.pixel_is_point = dataset.tags().get("AREA_OR_POINT") == "Point"

    @functools.cached_property
    def stretch(self) -> Stretch:
        """The stretch from values to 8 bit: one for the whole file, whatever part is mapped and at any resolution.

        Raises:
          UserError: the value range or the percentiles are not ascending, or the file cannot be read.
        """
        options = self._options
        if options.value_range is not None:
            return radiometry.fixed(*options.value_range)
        if options.percentiles is None and self.kinds == {"uint8"}:
            return radiometry.AS_IS
        stretch = radiometry.percentile(self._valid_values(), options.percentiles or radiometry.PERCENTILES)
        flat = {name: low for name, (low, high) in zip(self.band_names, stretch.ranges, strict=True) if low == high}
        if flat:
            logging.warning(
                "%s: both percentiles of band %s have the same value, so the band is black for the model; give the "
                "values that become 0 and 255 with --range, or mark the background as nodata",
                self.path,
                ", ".join(f"{name} ({value:g})" for name, value in flat.items()),
            )
        return stretch

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.grid.height, self.grid.width

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Image, Mask]:
        """Read a window of the grid; it may extend beyond the last row and column, where no pixel is valid.

        Returns:
          The image, with the colour `FILL` at invalid pixels, and the mask of valid pixels. `validity` defines which
          pixels are valid, and `resampling` which pixels of a resampled grid are.

        Raises:
          UserError: the file cannot be read there.
        """
        image, valid = np.full((height, width, 3), FILL), np.zeros((height, width), bool)
        inside = np.s_[: self.grid.height - top, : self.grid.width - left]
        image[inside], valid[inside] = self._image(top, left, *valid[inside].shape)
        return image, valid

    def thumbnail(self, longest: int) -> tuple[Image, Mask]:
        """Return image and mask of the whole grid, subsampled to at most `longest` pixels a side."""
        step = max(1.0, max(self.grid.height, self.grid.width) / longest)
        rows, columns = (
            ((np.arange(math.ceil(size / step)) + 0.5) * size / math.ceil(size / step)).astype(int)
            for size in (self.grid.height, self.grid.width)
        )
        lines = [self._image(int(row), 0, 1, self.grid.width) for row in rows]
        images, valid = (np.concatenate([line[:, columns] for line in part]) for part in zip(*lines, strict=True))
        return images, valid

    def _image(self, top: int, left: int, height: int, width: int) -> tuple[Image, Mask]:
        image, valid = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
        source_width = math.ceil(width * self._columns.scale) + 2
        rows = max(1, int(math.prod(PART) / source_width / self._rows.scale))
        for first in range(0, height, rows):
            part = slice(first, min(first + rows, height))
            values, valid[part] = self._values(top + part.start, left, part.stop - part.start, width)
            stretched = np.where(valid[part], self.stretch(values), FILL[:, None, None])
            image[part] = rearrange(stretched, "c h w -> h w c")
        return image, valid

    def _values(
        self, top: int, left: int, height: int, width: int
    ) -> tuple[Num[np.ndarray, "3 h w"], Bool[np.ndarray, "h w"]]:
        top, left = self._top + top, self._left + left
        rows, columns = (self._rows, top, top + height), (self._columns, left, left + width)
        if self._options.gsd is None:
            return self._read(rows[1:], columns[1:])
        return resample(*self._read(*(axis.support(*span) for axis, *span in (rows, columns))), rows, columns)

    def _read(
        self, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[Num[np.ndarray, "3 h w"], Bool[np.ndarray, "h w"]]:
        return validity.read(self.path, self._dataset, self._bands, Window.from_slices(rows, columns))

    def _valid_values(self) -> Shaped[np.ndarray, "3 n"]:
        """Return the values of the file's valid pixels, or of a random sample of at least about `radiometry.SAMPLE`.

        The sample is random, since every n-th pixel could hit the same part of a periodic pattern. Its seed is fixed,
        so that maps are reproducible.
        """
        random, share, kept = np.random.default_rng(0), 1.0, []
        for top, left in itertools.product(
            *(range(0, axis.size, side) for axis, side in zip((self._rows, self._columns), PART, strict=True))
        ):
            rows, columns = (top, min(top + PART[0], self._rows.size)), (left, min(left + PART[1], self._columns.size))
            values, valid = self._read(rows, columns)
            found = values[:, valid]
            kept.append(found[:, random.random(found.shape[1]) < share])
            while sum(part.shape[1] for part in kept) > 2 * radiometry.SAMPLE:
                kept, share = [part[:, random.random(part.shape[1]) < 0.5] for part in kept], share / 2
        return np.concatenate(kept, axis=1)


def check_scene(path: str, options: SceneOptions) -> None:
    """Check that a scene can be opened with these options, without reading pixels.

    The value range and the percentiles are checked later, when the stretch is computed.

    Raises:
      UserError: the scene cannot be opened, or the options do not fit it.
    """
    with _selected(path, options) as (dataset, bands):
        Scene(path, dataset, bands, options)


@contextlib.contextmanager
def open_scene(path: str, options: SceneOptions, *, quiet: bool = False) -> Iterator[Scene]:
    """Open a raster in any format that GDAL can read.

    Args:
      path: the raster.
      options: how it is read.
      quiet: suppress the warnings about a missing CRS, about pixel sizes that differ between coordinates and ground,
        and about bounds that the scene does not cover.

    Raises:
      UserError: the file is not a raster, or the options do not fit it.
    """
    with _selected(path, options) as (dataset, bands):
        scene = Scene(path, dataset, bands, options)
        if not quiet:
            _say_what_is_unexpected(scene, scene.source, options)
        yield scene


def scene_files(path: str) -> set[str]:
    """Return the names of all files from which a scene is read, including those to which virtual rasters refer.

    For a scene that cannot be opened this is `path` only.
    """
    found, waiting = set(), [path]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name == path or name.lower().endswith(".vrt"):
            with contextlib.suppress(RasterioError, UserError), _unplaced_allowed(), _environment(name) as file:
                with rasterio.open(file) as dataset:
                    waiting += dataset.files
    return found


def _say_what_is_unexpected(scene: Scene, source: Grid, options: SceneOptions) -> None:
    if source.crs is None:
        logging.warning("%s has no coordinate reference system, so its map will have none either", scene.path)
    nominal, ground = source.nominal_size(), source.ground_size()
    if options.gsd is not None and nominal and ground and not np.allclose(nominal, ground, rtol=0.02):
        logging.warning(
            "%s: a pixel is %.4g x %.4g m in its coordinates but %.4g x %.4g m on the ground; --gsd=%g means metres on "
            "the ground",
            *(scene.path, *nominal, *ground, options.gsd),
        )
    if options.bounds is not None and scene.grid.leaves_out(options.bounds):
        logging.warning(
            "%s does not cover all of the bounds %s; its map covers %s",
            *(scene.path, text(options.bounds), text(scene.grid.bounds())),
        )


@contextlib.contextmanager
def _selected(path: str, options: SceneOptions) -> Iterator[tuple[DatasetReader, tuple[int, int, int]]]:
    """Yield the open dataset and the numbers of its chosen bands."""
    with _environment(path) as name, _open(path, name) as dataset:
        bands = select_bands(dataset, options.bands)
        _check_values(path, dataset, bands, options)
        yield dataset, bands


@contextlib.contextmanager
def _unplaced_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `open_scene` gives its own warning
        yield


@contextlib.contextmanager
def _environment(path: str) -> Iterator[str]:
    """Set GDAL's options for a scene, and yield the name under which GDAL opens it."""
    name = gdal_name(path)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **gdal_options(name)):
        yield name


def _open(path: str, name: str) -> DatasetReader:
    """Open a scene.

    Args:
      path: as the user gave it, for the errors.
      name: see `remote.gdal_name`.

    Raises:
      UserError: it cannot be opened, or holds no bands.
    """
    with _unplaced_allowed():
        try:
            dataset = rasterio.open(name)
        except RasterioError as error:
            reason = str(error).rstrip(".")
            remedy = "if another program can open it, convert it to GeoTIFF there"
            if path.lower().endswith(".json"):
                remedy = f"of a STAC item name an asset: {path}#visual"
            elif gdal_options(name):
                remedy = "check the address and the credentials; the server must support requests of ranges"
            raise UserError(f"cannot open {path} as a raster: {reason}; {remedy}") from None
    if dataset.count == 0:
        inner = dataset.subdatasets
        dataset.close()
        remedy = f"give one of its subdatasets, e.g. {inner[0]}" if inner else "give a file that holds a raster"
        raise UserError(f"{path} holds no bands; {remedy}")
    return dataset


def _check_values(path: str, dataset: DatasetReader, bands: tuple[int, int, int], options: SceneOptions) -> None:
    for band in bands:
        kind, colour = dataset.dtypes[band - 1], dataset.colorinterp[band - 1]
        if kind.startswith("complex"):
            raise UserError(f"band {band} of {path} is {kind}, expected real numbers; convert it to amplitude first")
        if colour == ColorInterp.palette:
            raise UserError(
                f"band {band} of {path} holds indices of a colour table, expected measured values; "
                "convert the file first: gdal_translate -expand rgb"
            )
        if colour in NO_MEASUREMENTS:
            raise UserError(
                f"band {band} of {path} is {colour.name}, expected red, green, blue or another measurement; convert "
                "the file to RGB first, or choose other bands with --bands"
            )
        bits = int(dataset.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        if bits < 8 and options.value_range is None and options.percentiles is None:
            raise UserError(
                f"band {band} of {path} has {bits} bit per pixel, expected 8 or more; if it is an image, and not a "
                f"mask or class map, give --range=0,{2**bits - 1}"
            )


def _grid(path: str, dataset: DatasetReader) -> Grid:
    """Return the grid of a raster file.

    Raises:
      UserError: the file is georeferenced in another way than by a geotransform, or its pixels have no area.
    """
    if dataset.transform.is_identity:
        placed_by = {
            "ground control points": dataset.gcps[0],
            "rational polynomial coefficients": dataset.rpcs,
            "a geolocation array": dataset.tags(ns="GEOLOCATION"),
        }
        for means, given in placed_by.items():
            if given:
                raise UserError(
                    f"{path} is georeferenced by {means}, expected a geotransform; warp it to a grid first: "
                    f"gdalwarp {path} warped.tif"
                )
    if dataset.transform.is_degenerate:
        raise UserError(
            f"the pixels of {path} have no area: its geotransform is {dataset.transform.to_gdal()}; correct it, e.g. "
            "with gdal_edit -a_ullr"
        )
    return Grid(dataset.crs, dataset.transform, dataset.height, dataset.width)
