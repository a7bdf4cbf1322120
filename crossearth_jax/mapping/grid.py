"""Pixel grids on the ground: their resolution in metres, resampled copies, parts of them."""

from __future__ import annotations

import dataclasses
import math

from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from crossearth_jax.config import UserError

METRES_PER_DEGREE = 6_371_008.8 * math.pi / 180  # along a meridian of the mean sphere

Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the coordinates of a grid


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie on the ground."""

    crs: CRS | None
    transform: Affine  # (column, row) to coordinates; may rotate and shear
    height: int
    width: int

    def pixel_size(self) -> tuple[float, float] | None:
        """Width and height of the pixel in the middle, in metres; None where coordinates have no known unit."""
        if self.crs is None:
            return None
        across = (self.transform.a, self.transform.d)
        down = (self.transform.b, self.transform.e)
        if self.crs.is_geographic:
            latitude = (self.transform @ (self.width / 2, self.height / 2))[1]
            x_unit, y_unit = METRES_PER_DEGREE * math.cos(math.radians(latitude)), METRES_PER_DEGREE
        else:
            try:
                x_unit = y_unit = self.crs.linear_units_factor[1]
            except CRSError:
                return None
        return math.hypot(across[0] * x_unit, across[1] * y_unit), math.hypot(down[0] * x_unit, down[1] * y_unit)

    def resampled(self, gsd: float) -> Grid:
        """The same ground, orientation and first corner in square pixels of `gsd` metres.

        The sides are rounded to whole pixels, so that the centre of every pixel lies on the original grid.

        Raises:
          UserError: the unit of the coordinates is unknown.
        """
        size = self.pixel_size()
        if size is None:
            raise UserError("a ground sampling distance in metres needs a scene with a coordinate reference system")
        across, down = gsd / size[0], gsd / size[1]
        transform = self.transform @ Affine.scale(across, down)
        return Grid(self.crs, transform, max(1, round(self.height / down)), max(1, round(self.width / across)))

    def part(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the smallest window that holds the pixels within `bounds`.

        Raises:
          UserError: `bounds` is not a box or lies outside.
        """
        left, bottom, right, top = bounds
        if not (left < right and bottom < top):
            raise UserError(f"the bounds are {_text(bounds)}, expected left < right and bottom < top")
        corners = [~self.transform @ corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))]
        (first_column, last_column), (first_row, last_row) = (
            (max(math.floor(min(values) + 1e-6), 0), min(math.ceil(max(values) - 1e-6), size))
            for values, size in zip(zip(*corners, strict=True), (self.width, self.height), strict=True)
        )
        if first_column >= last_column or first_row >= last_row:
            raise UserError(f"the bounds {_text(bounds)} do not overlap the scene, which covers {_text(self.bounds())}")
        return first_row, first_column, last_row - first_row, last_column - first_column

    def bounds(self) -> Bounds:
        """The smallest box around the grid."""
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        x, y = zip(*(self.transform @ corner for corner in corners), strict=True)
        return min(x), min(y), max(x), max(y)

    def shifted(self, top: int, left: int, height: int, width: int) -> Grid:
        """The grid of a window."""
        return Grid(self.crs, self.transform @ Affine.translation(left, top), height, width)


def _text(bounds: Bounds) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)
