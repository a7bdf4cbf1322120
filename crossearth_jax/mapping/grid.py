"""Georeferenced pixel grids: their ground resolution in metres, resampled grids, and parts of a grid."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import rasterio.warp
from jaxtyping import Float
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from crossearth_jax.config import UserError

GEOCENTRIC = CRS.from_epsg(4978)  # metres from the centre of the Earth (WGS 84)
# Largest relative difference between a length in coordinates and on the ground for which the coordinates are taken as
# metres on the ground. In national and UTM grids the difference is smaller.
SURVEY = 0.005
# Largest distance between the points at which the area of a pixel is computed, in pixels and in metres. Between them it
# is interpolated; over 50 km the error is below 1e-5.
AREA_SPACING = 16, 50_000.0
AREA_SPAN = 100.0  # metres over which the area is measured, since projections are accurate to about a millimetre only

Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the coordinates of the grid


@dataclasses.dataclass(frozen=True)
class Grid:
    """Size, CRS and geotransform of a raster."""

    crs: CRS | None
    transform: Affine  # from (column, row) to coordinates; may rotate and shear
    height: int
    width: int

    def nominal_size(self) -> tuple[float, float] | None:
        """Return width and height of a pixel in projected coordinates, converted to metres; None if not projected."""
        try:
            unit = self.crs.linear_units_factor[1] if self.crs else None
        except CRSError:
            return None
        if unit is None:
            return None
        t = self.transform
        return math.hypot(t.a, t.d) * unit, math.hypot(t.b, t.e) * unit

    def ground_size(self) -> tuple[float, float] | None:
        """Return width and height of the central pixel in metres on the ground; None if its position is unknown."""
        if self.crs is None or self.transform.is_identity:
            return None
        # Measured over several pixels, since projections are accurate to about a millimetre only.
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

    def pixel_areas(self, top: int, left: int, height: int, width: int) -> Float[np.ndarray, "h w"] | None:
        """Return the area on the ground of every pixel of a window, in square metres; None if it is unknown.

        It is the area on the ellipsoid, whatever the projection: in geographic coordinates it decreases towards the
        poles. It is computed from geocentric coordinates at points of a lattice (`AREA_SPACING`) and interpolated
        bilinearly. At positions that are not on Earth it is infinite or NaN.
        """
        size = self.ground_size()
        if size is None:
            return None
        assert self.crs is not None
        across, down = (max(0.5, AREA_SPAN / side) for side in size)  # in pixels
        columns, column_weights = _nodes(left, width, size[0])
        rows, row_weights = _nodes(top, height, size[1])
        offsets = np.array([(-across / 2, 0), (across / 2, 0), (0, -down / 2), (0, down / 2)])
        column, row = np.broadcast_arrays(
            columns + offsets[:, 0, None, None], rows[:, None] + offsets[:, 1, None, None]
        )
        shape = column.shape
        t, column, row = self.transform, column.ravel(), row.ravel()
        x, y = t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f
        try:
            points = rasterio.warp.transform(self.crs, GEOCENTRIC, x, y, np.zeros(x.size))
        except Exception:  # GDAL's own errors have no public class
            return None
        west, east, north, south = np.moveaxis(np.reshape(points, (3, *shape)), 0, -1)
        with np.errstate(invalid="ignore"):
            areas = np.linalg.norm(np.cross(east - west, south - north), axis=-1) / (across * down)
            return row_weights @ areas @ column_weights.T

    def pixel_size(self) -> tuple[float, float] | None:
        """Return width and height of a pixel in metres on the ground, measured in the middle of the grid.

        If the size in projected coordinates differs from it by less than `SURVEY`, that size is returned, so that
        pixels of, for example, exactly 10 m in UTM coordinates have 10 m. None if the position on Earth is unknown.
        """
        ground, nominal = self.ground_size(), self.nominal_size()
        if ground and nominal and np.allclose(nominal, ground, rtol=SURVEY):
            return nominal
        return ground

    def resampled(self, gsd: float) -> Grid:
        """Return a grid of the same area, orientation and origin with pixels of `gsd` by `gsd` metres.

        Height and width are rounded to whole pixels, so the centre of every new pixel lies on the original grid.

        Raises:
          UserError: the size of the pixels in metres is unknown.
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
                "a ground resolution in metres needs a scene with a coordinate reference system of the Earth and a "
                f"geotransform; {found}; assign them (gdal_edit -a_srs … -a_ullr …) or leave --gsd out"
            )
        across, down = gsd / size[0], gsd / size[1]
        transform = self.transform @ Affine.scale(across, down)
        return Grid(self.crs, transform, max(1, round(self.height / down)), max(1, round(self.width / across)))

    def part(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the smallest window that contains all pixels which `bounds` overlap.

        Longitudes in `bounds` may differ from those of the grid by 360 degrees. If the box overlaps the grid both with
        and without this difference, the larger window is returned.

        Raises:
          UserError: `bounds` is not a valid box, or does not overlap the grid.
        """
        left, bottom, right, top = bounds
        if not (left < right and bottom < top):
            raise UserError(f"the bounds are {text(bounds)}, expected left < right and bottom < top")
        best = max(map(self._window, self._turned(bounds)), key=lambda window: max(window[2], 0) * max(window[3], 0))
        if best[2] <= 0 or best[3] <= 0:
            raise UserError(f"the bounds {text(bounds)} do not overlap the scene, which covers {text(self.bounds())}")
        return best

    def _window(self, bounds: Bounds) -> tuple[int, int, int, int]:
        """Return the window of one box, without turns of 360 degrees; negative sizes mean that nothing overlaps."""
        left, bottom, right, top = bounds
        corners = [~self.transform @ corner for corner in ((left, bottom), (left, top), (right, bottom), (right, top))]
        (first_column, last_column), (first_row, last_row) = (
            (max(math.floor(min(values) + 1e-6), 0), min(math.ceil(max(values) - 1e-6), size))
            for values, size in zip(zip(*corners, strict=True), (self.width, self.height), strict=True)
        )
        return first_row, first_column, last_row - first_row, last_column - first_column

    def _turned(self, bounds: Bounds) -> list[Bounds]:
        """Return the box and, for geographic coordinates, the same box with longitudes changed by 360 degrees."""
        left, bottom, right, top = bounds
        turns = (0.0, 360.0, -360.0) if self.crs is not None and self.crs.is_geographic else (0.0,)
        return [(left + turn, bottom, right + turn, top) for turn in turns]

    def leaves_out(self, bounds: Bounds) -> bool:
        """Return whether `bounds` extend beyond the grid by more than a pixel."""
        left, bottom, right, top = self.bounds()
        t = self.transform
        pixel = max(abs(t.a) + abs(t.b), abs(t.d) + abs(t.e))
        beyond = [max(left - box[0], bottom - box[1], box[2] - right, box[3] - top) for box in self._turned(bounds)]
        return min(beyond) > pixel

    def bounds(self) -> Bounds:
        """Return the smallest box around the grid."""
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        x, y = zip(*(self.transform @ corner for corner in corners), strict=True)
        return min(x), min(y), max(x), max(y)

    def shifted(self, top: int, left: int, height: int, width: int) -> Grid:
        """Return the grid of a window that starts at pixel (top, left)."""
        return Grid(self.crs, self.transform @ Affine.translation(left, top), height, width)


def _nodes(first: int, count: int, size: float) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "count n"]]:
    """Return lattice points along one axis, from the first to the last pixel centre of a window.

    Args:
      first: first pixel of the window.
      count: number of pixels.
      size: side of a pixel in metres.

    Returns:
      Positions in pixels, and for each pixel the weights of the lattice points in a linear interpolation.
    """
    intervals = max(1, math.ceil((count - 1) / max(1, min(AREA_SPACING[0], AREA_SPACING[1] / size))))
    points = np.linspace(0, count - 1, intervals + 1)
    spacing = max(points[1], 1)  # a single pixel has two equal points that share the weight
    weights = np.maximum(0, 1 - abs(np.arange(count)[:, None] - points) / spacing)
    return first + 0.5 + points, weights / weights.sum(1, keepdims=True)


def text(bounds: Bounds) -> str:
    """Format a box as in --bounds."""
    return ", ".join(f"{value:.10g}" for value in bounds)
