"""Read the four global rasters of Blue Marble, check their digests and bring them to one grid per season.

Images are not resampled. Land cover and climate, stored at 0.05 degrees, are resampled to the grid of the image by
nearest neighbour.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import pathlib

import numpy as np
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError

DIRECTORY = pathlib.Path(__file__).parent
SHA256 = {
    "green_season.jpg": "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
    "brown_season.jpg": "228deba2e4b600146bdcb6cfa359b8ead6aacc2b1c13550a29cd82824cfa1c01",
    "igbp_2019.png": "370ce7afb0f95f5e4214349374a3b9c3f14085dc0bef1f4c48c5d9bfff4dfb8a",
    "koppen_main_groups.png": "8b9a369458b195f062ddd3c2702cbfba0252b034f598247a799c442f5ef3d960",
}
CLIMATE_IDS = {"tropical": 1, "arid": 2, "temperate": 3, "cold": 4, "polar": 5}  # 0: sea or no data

# IGBP class -> train id. Wetland (11) and urban (13) are ignored: they are rare and mixed pixels at this resolution.
_IGBP_TO_TRAIN = np.array([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, IGNORE, 3, IGNORE, 3, 4, 4], np.uint8)


@dataclasses.dataclass(frozen=True)
class Season:
    """Image, labels and climates of one season on one grid."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    label: np.ndarray  # (h, w) uint8 train ids, IGNORE
    climate: np.ndarray  # (h, w) uint8, values of CLIMATE_IDS, 0 on the sea

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.label.shape
        return height, width


@functools.lru_cache(maxsize=2)  # all configurations of a season use the same rasters
def load_season(season: str, directory: pathlib.Path) -> Season:
    """Read the image of `season` ("green" or "brown") and resample labels and climates to its grid.

    Args:
      season: "green" or "brown".
      directory: folder of the rasters, usually `DIRECTORY`.

    Raises:
      UserError: a raster is missing, truncated or altered.
    """
    image = _read(directory, f"{season}_season.jpg")
    label = _IGBP_TO_TRAIN[_read(directory, "igbp_2019.png")]
    climate = _read(directory, "koppen_main_groups.png")
    grid = image.shape[:2]
    return Season(image, nearest(label, grid), nearest(climate, grid))


def nearest(raster: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return, for each pixel of `grid`, the value of the cell of `raster` that contains its centre.

    Both have the same extent. A centre on the edge between two cells gets the value of the southern or eastern one.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(grid, raster.shape, strict=True)
    )
    return raster[rows[:, None], columns]


def _read(directory: pathlib.Path, name: str) -> np.ndarray:
    path = directory / name
    if not path.is_file():
        raise UserError(f"{path} is missing; it is part of the repository: restore it with git checkout")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise UserError(
            f"{path} ({len(data)} bytes) does not have the expected SHA-256 {SHA256[name]}:"
            " it is truncated or altered; restore it with git checkout"
        )
    # The content is known by its digest, so Pillow's protection against decompression bombs is not needed.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return np.asarray(Image.open(io.BytesIO(data)))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
