"""Read the labels of a user's images in parts, on the pixel grid of the image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from crossearth_jax.benchmark import IGNORE, own_files
from crossearth_jax.config import UserError
from crossearth_jax.runtime import picture_files

from ..labels import Colours, Numbers
from ..tiles import Box
from .images import OwnImage, Raster

_JPEG = (".jpg", ".jpeg")
_BRIGHT = 128  # smallest value of a mask pixel that belongs to the region


@runtime_checkable
class Truth(Protocol):
    """Labels of one image, or of all images of a domain."""

    def read(self, image: OwnImage, box: Box) -> UInt8[np.ndarray, "h w"]:
        """Return the train ids (or IGNORE) of a part of `image`.

        Raises:
          UserError: a file cannot be read, or a value is unknown.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LabelFile:
    """A picture or raster with a number or colour for each pixel of its image."""

    path: Path
    rule: Numbers | Colours
    slack: int  # pixels by which height and width may differ from those of the image

    def check(self, image: OwnImage) -> None:
        """Check from the headers of both files that the label fits its image.

        Raises:
          UserError: the label is a JPEG, or has another size or georeference than the image.
        """
        if self.path.suffix.lower() in _JPEG:
            raise UserError(
                f"{self.path} is a JPEG, whose compression changes the values of labels; export the labels again as PNG"
            )
        height, width = own_files.header_size(self.path)
        expected = (image.source.height, image.source.width) if isinstance(image, Raster) else image.size
        apart = max(abs(height - expected[0]), abs(width - expected[1]))
        if apart > self.slack:
            remedy = "; allow one row and column with off_by_one = true" if apart == 1 else ""
            raise UserError(
                f"{self.path} has {width} x {height} pixels, its image {image.path} {expected[1]} x {expected[0]};"
                f" expected the same{remedy}"
            )
        if self.path.suffix.lower() not in own_files.PICTURES and isinstance(image, Raster):
            from . import rasters  # only rasters need rasterio

            rasters.refuse_other_ground(self.path, image)

    def read(self, image: OwnImage, box: Box) -> UInt8[np.ndarray, "h w"]:
        """See `Truth`; rows and columns that are missing in the label are IGNORE."""
        rows, columns = image.source_pixels(box)
        pixels, known = self._pixels(Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        down, across = rows - rows[0], columns - columns[0]
        present = np.ix_(down[down < known.shape[0]], across[across < known.shape[1]])
        pixels, known = pixels[present], known[present]
        pixels[~known] = next(iter(self.rule.table))  # invalid pixels may have values that would be refused
        labels = np.full((len(rows), len(columns)), IGNORE, np.uint8)
        inside = labels[: known.shape[0], : known.shape[1]]
        inside[known] = self.rule.train_ids(pixels, str(self.path)).ids[known]
        return labels

    def _pixels(self, box: Box) -> tuple[Integer[np.ndarray, "h w *3"], Bool[np.ndarray, "h w"]]:
        """Return the values of a part of the file, cropped to its extent, and the mask of valid pixels."""
        if self.path.suffix.lower() in own_files.PICTURES:
            pixels = picture_files.read_label(self.path.read_bytes(), str(self.path), colours=self.rule.colours)
            pixels = pixels[box.slices]
            return pixels, np.ones(pixels.shape[:2], bool)
        from . import rasters  # only rasters need rasterio

        return rasters.read_label(self.path, box, colours=self.rule.colours)


@dataclasses.dataclass(frozen=True)
class Masks:
    """Black and white pictures, one per region; later regions cover earlier ones."""

    masks: tuple[tuple[int, Path], ...]  # train id and file, in drawing order
    background: int  # train id of pixels outside all masks, or IGNORE

    def read(self, image: OwnImage, box: Box) -> UInt8[np.ndarray, "h w"]:
        """See `Truth`."""
        rows, columns = image.source_pixels(box)
        labels = np.full((len(rows), len(columns)), self.background, np.uint8)
        for label, path in self.masks:
            pixels = picture_files.read_label(path.read_bytes(), str(path), colours=True)
            if pixels.shape != image.size:
                found = " x ".join(map(str, pixels.shape[1::-1]))
                raise UserError(
                    f"{path} has {found} pixels, its image {image.path} {image.size[1]} x {image.size[0]}; export again"
                )
            labels[pixels[np.ix_(rows, columns)] >= _BRIGHT] = label
        return labels
