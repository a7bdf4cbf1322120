"""Rules that cut scenes into tiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of pixels; `right` and `bottom` are excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index of the rectangle in an array (h, w, …)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def clipped_origins(length: int, tile: int) -> list[int]:
    """Return the multiples of `tile` below `length`, the last one moved back so that its tile ends at `length`.

    [0] if one tile covers `length`. This is the tiling of the benchmark. Its converters have a stride option, 256 by
    default, but compute origins as index x tile and move boxes beyond the edge back, where they coincide. This gives
    the 3456, 2016, 344 and 398 tiles of Potsdam and Vaihingen.
    https://github.com/open-mmlab/mmsegmentation, tools/dataset_converters/potsdam.py
    """
    return [min(index * tile, max(length - tile, 0)) for index in range(max(math.ceil(length / tile), 1))]


def even_origins(length: int, tile: int) -> list[int]:
    """Return origins of the fewest tiles that cover `length`, evenly spaced: 5000 with 1024 gives 0, 994, …, 3976."""
    count = max(math.ceil(length / tile), 1)
    return [round(index * max(length - tile, 0) / max(count - 1, 1)) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tiling rule."""

    tile: int  # side in pixels
    even: bool = False  # True: `even_origins`; False: `clipped_origins`

    def boxes(self, height: int, width: int) -> Iterator[Box]:
        """Yield the tiles of a scene, row by row; a side shorter than a tile is not cut."""
        origins = even_origins if self.even else clipped_origins
        for top in origins(height, self.tile):
            for left in origins(width, self.tile):
                yield Box(left, top, min(left + self.tile, width), min(top + self.tile, height))
