"""Read the images of a user's domain: 8-bit RGB pictures, and rasters of any kind, read like scenes of `predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from crossearth_jax.benchmark import own_files
from crossearth_jax.benchmark.domains_file import OwnDomain, VectorLabels
from crossearth_jax.config import UserError
from crossearth_jax.runtime import picture_files

from ..tiles import Box

_SAME = 0.02  # relative difference of pixel sizes up to which a raster is not resampled
_ORIENTATION = 0x0112  # EXIF orientation tag; 1 is upright


@dataclasses.dataclass(frozen=True)
class Picture:
    """An 8-bit RGB picture, not georeferenced."""

    path: Path
    size: tuple[int, int]  # height and width

    @property
    def bands(self) -> tuple[str, str, str]:
        """Names of the channels."""
        return ("red", "green", "blue")

    def source_pixels(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the file for the rows and columns of `box`."""
        return np.arange(box.top, box.bottom), np.arange(box.left, box.right)

    def read(self, box: Box) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Read a part of the image and the mask of its valid pixels.

        Raises:
          UserError: the file cannot be read.
        """
        image = picture_files.read_image(self.path.read_bytes(), str(self.path))[box.slices]
        return image, np.ones(image.shape[:2], bool)


@dataclasses.dataclass(frozen=True)
class Raster:
    """A raster, read in windows of `grid`, which differs from the grid of the file if the raster is resampled."""

    path: Path
    size: tuple[int, int]  # height and width of `grid`
    bands: tuple[str, str, str]
    options: Any  # mapping.scene.SceneOptions
    grid: Any  # mapping.grid.Grid from which tiles are cut
    source: Any  # mapping.grid.Grid of the file
    stretch: Any = None  # mapping.radiometry.Stretch; None: computed at every reading

    @property
    def placed(self) -> bool:
        """Whether the raster is georeferenced."""
        return self.grid.crs is not None and not self.grid.transform.is_identity

    def source_pixels(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of the file that contain the centres of the rows and columns of `box`."""
        scale = ~self.source.transform @ self.grid.transform
        rows = np.floor((np.arange(box.top, box.bottom) + 0.5) * scale.e).astype(int)
        columns = np.floor((np.arange(box.left, box.right) + 0.5) * scale.a).astype(int)
        return np.minimum(rows, self.source.height - 1), np.minimum(columns, self.source.width - 1)

    def read(self, box: Box) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """Read a part of the image and the mask of its valid pixels.

        Raises:
          UserError: the file cannot be read.
        """
        from crossearth_jax.mapping.scene import open_scene

        with open_scene(str(self.path), self.options, quiet=True) as scene:
            if self.stretch is not None:
                scene.stretch = self.stretch
            return scene.read(box.top, box.left, box.bottom - box.top, box.right - box.left)

    def with_stretch(self) -> Raster:
        """Return a copy with the stretch of the whole raster, for a raster that is read in several parts.

        Raises:
          UserError: the file cannot be read.
        """
        from crossearth_jax.mapping.scene import open_scene

        with open_scene(str(self.path), self.options, quiet=True) as scene:
            return dataclasses.replace(self, stretch=scene.stretch)


OwnImage = Picture | Raster


def open_image(path: Path, domain: OwnDomain) -> OwnImage:
    """Open an image of the domain by reading its header.

    An opaque 8-bit RGB picture (or one with a palette) becomes a `Picture` if the domain states neither bands nor a
    range and its labels are not a vector file. Everything else becomes a `Raster`.

    Raises:
      UserError: the file is not an image, it has more than 8 bits and the domain gives no range, or it is a picture
        with an EXIF rotation that must be read as a raster.
    """
    as_picture = domain.bands is None and domain.value_range is None and domain.percentiles is None
    if path.suffix.lower() in own_files.PICTURES and as_picture and not isinstance(domain.labels, VectorLabels):
        if _is_plain(path):
            return Picture(path, own_files.header_size(path))
    return _open_raster(path, domain)


def _is_plain(path: Path) -> bool:
    """Return whether a picture is opaque, of 8 bits, and RGB or with a palette."""
    with own_files.opened_picture(path) as picture, path.open("rb") as file:
        bits = file.read(25)[24] if picture.format == "PNG" else 8  # Pillow converts 16-bit RGB to 8 bits on opening
        plain = picture.mode in ("RGB", "P") and "transparency" not in picture.info and bits <= 8
        if not plain and picture.getexif().get(_ORIENTATION, 1) != 1:
            raise UserError(
                f"{path} is a picture of mode {picture.mode} with an EXIF rotation; save it upright or as 8-bit RGB"
            )
        return plain


def _open_raster(path: Path, domain: OwnDomain) -> Raster:
    try:
        from crossearth_jax.mapping.scene import SceneOptions, open_scene
    except ModuleNotFoundError:
        raise own_files.without_geo(path) from None
    options = SceneOptions(bands=domain.bands, value_range=domain.value_range, percentiles=domain.percentiles)
    with open_scene(str(path), options, quiet=True) as scene:
        kinds = scene.kinds - {"uint8"}
        if kinds and domain.value_range is None and domain.percentiles is None:
            raise UserError(
                f'{path} holds {min(kinds)} numbers, expected 8 bit; state their range: range = "p2,p98"'
                f' (percentiles of each raster) or range = "0,3000" (values), in [domains.{domain.name}]'
            )
        (first, second, third), source = scene.band_names, scene.source
        bands = first, second, third
    pixel = source.pixel_size()
    grid = source
    if domain.gsd is not None and pixel is not None and not np.allclose(pixel, domain.gsd, rtol=_SAME):
        options = dataclasses.replace(options, gsd=domain.gsd)
        grid = source.resampled(domain.gsd)
    if domain.band_names is not None:
        bands = domain.band_names
    elif domain.bands is not None:
        words = [word.strip() for word in domain.bands.split(",")]
        bands = (words[0], words[len(words) // 2], words[-1])
    return Raster(path, (grid.height, grid.width), bands, options, grid, source)
