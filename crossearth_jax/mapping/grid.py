"""Pixel grids on the ground: their resolution in metres, resampled copies, parts of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import rasterio.warp
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from crossearth_jax.config import UserError

GEOCENTRIC = CRS.from_epsg(4978)  # metres from the middle of the Earth (WGS 84)
SURVEY = 0.005  # relative error of coordinates that still counts as metres: that of national and UTM grids is less

Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the coordinates of a grid


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie on the ground."""

    crs: CRS | None
    transform: Affine  # (column, row) to coordinates; may rotate and shear
    height: int
    width: int

    def nominal_size(self) -> tuple[float, float] | None:
        """Width and height of a pixel in the unit of projected coordinates, as metres; None without such a unit."""
        try:
            unit = self.crs.linear_units_factor[1] if self.crs else None
        except CRSError:
            return None
        if unit is None:
            return None
        t = self.transform
        return math.hypot(t.a, t.d) * unit, math.hypot(t.b, t.e) * unit

    def ground_size(self) -> tuple[float, float] | None:
        """Width and height on the ground, in metres, of the pixel in the middle; None where no place is known."""
        if self.crs is None or self.transform.is_identity:
            return None
        # Over some pixels, since projections are computed to a millimetre or so.
        steps = min(8, self.width), min(8, self.height)
        middle = self.width / 2, self.height / 2
        ends = [(-steps[0] / 2, 0), (steps[0] / 2, 0), (0, -steps[1] / 2), (0, steps[1] / 2)]
        x, y = zip(*(self.transform @ (middle[0] + across, middle[1] + down) for across, down in ends), strict=True)
        try:
            points = np.array(rasterio.warp.transform(self.crs, GEOCENTRIC, x, y, [0.0] * 4)).T
        except Exception:  # GDAL's own errors have no public class
            return None
        width, height = map(float, np.linalg.norm(points[1::2] - points[::2], axis=1) / steps)
        return (width, height) if 0 < width < math.inf and 0 < height < math.inf else None

    def pixel_size(self) -> tuple[float, float] | None:
        """Width and height of a pixel in metres: on the ground, in the middle of the grid.

        Where the unit of the coordinates comes close, it is taken, so that a grid of whole metres stays one.
        None where the place on Earth is unknown.
        """
        ground, nominal = self.ground_size(), self.nominal_size()
        if ground and nominal and np.allclose(nominal, ground, rtol=SURVEY):
            return nominal
        return ground

    def resampled(self, gsd: float) -> Grid:
        """The same ground, orientation and first corner in pixels of `gsd` by `gsd` metres.

        The sides are rounded to whole pixels, so that the centre of every pixel lies on the original grid.

        Raises:
          UserError: it is unknown how large the pixels are.
        """
        size = self.pixel_size()
        if size is None:
            if self.crs is None:
                found = "this one has none"
            elif self.transform.is_identity:
                found = "this one has no geotransform"
            else:
                found = f"this one has {self.crs.to_wkt().split(',')[0]}]"
            raise UserError(
                "a ground sampling distance in metres needs a scene with a coordinate reference system and a place on "
                f"Earth; {found}; assign them (gdal_edit -a_srs … -a_ullr …) or leave --gsd out"
            )
        across, down = gsd / size[0], gsd / size[1]
        transform = self.transform @ Affine.scale(across, down)
        return Grid(self.crs, transform, max(1, round(self.height / down)), max(1, round(self.width / across)))

    def part(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the smallest window that holds the pixels within `bounds`.

        Longitudes may be those of the grid plus or minus 360 degrees; where both overlap, the larger part counts.

        Raises:
          UserError: `bounds` is not a box or lies outside.
        """
        left, bottom, right, top = bounds
        if not (left < right and bottom < top):
            raise UserError(f"the bounds are {text(bounds)}, expected left < right and bottom < top")
        best = max(map(self._window, self._turned(bounds)), key=lambda window: max(window[2], 0) * max(window[3], 0))
        if best[2] <= 0 or best[3] <= 0:
            raise UserError(f"the bounds {text(bounds)} do not overlap the scene, which covers {text(self.bounds())}")
        return best

    def _window(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """The same for one box; height and width may be negative."""
        left, bottom, right, top = bounds
        corners = [~self.transform @ corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))]
        (first_column, last_column), (first_row, last_row) = (
            (max(math.floor(min(values) + 1e-6), 0), min(math.ceil(max(values) - 1e-6), size))
            for values, size in zip(zip(*corners, strict=True), (self.width, self.height), strict=True)
        )
        return first_row, first_column, last_row - first_row, last_column - first_column

    def _turned(self, bounds: Bounds) -> list[Bounds]:
        """The box under every name that its place may have: longitudes repeat after 360 degrees."""
        left, bottom, right, top = bounds
        turns = (0.0, 360.0, -360.0) if self.crs is not None and self.crs.is_geographic else (0.0,)
        return [(left + turn, bottom, right + turn, top) for turn in turns]

    def leaves_out(self, bounds: Bounds) -> bool:
        """Whether `bounds` reach beyond the grid by more than a pixel."""
        left, bottom, right, top = self.bounds()
        t = self.transform
        pixel = max(abs(t.a) + abs(t.b), abs(t.d) + abs(t.e))
        beyond = [max(left - box[0], bottom - box[1], box[2] - right, box[3] - top) for box in self._turned(bounds)]
        return min(beyond) > pixel

    def bounds(self) -> Bounds:
        """The smallest box around the grid."""
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        x, y = zip(*(self.transform @ corner for corner in corners), strict=True)
        return min(x), min(y), max(x), max(y)

    def shifted(self, top: int, left: int, height: int, width: int) -> Grid:
        """The grid of a window."""
        return Grid(self.crs, self.transform @ Affine.translation(left, top), height, width)


def text(bounds: Bounds) -> str:
    """A box as in --bounds."""
    return ", ".join(f"{value:.10g}" for value in bounds)
