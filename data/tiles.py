"""Where scenes are cut into tiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of pixels, ends excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of an array (h, w, …)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def clipped_origins(length: int, tile: int) -> list[int]:
    """Multiples of `tile`, the last one pulled back so that it ends at `length`; [0] if one tile covers it.

    This is what the converters behind the benchmark do: they have a stride option, 256 by default, but compute
    origins as index x tile; boxes past the edge are pulled back onto each other (so do 3456, 2016, 344 and 398
    tiles come about). https://github.com/open-mmlab/mmsegmentation, tools/dataset_converters/potsdam.py
    """
    return [min(index * tile, max(length - tile, 0)) for index in range(max(math.ceil(length / tile), 1))]


def even_origins(length: int, tile: int) -> list[int]:
    """The fewest tiles that cover `length`, evenly spread: 5000 in 1024 gives 0, 994, …, 3976."""
    count = max(math.ceil(length / tile), 1)
    return [round(index * max(length - tile, 0) / max(count - 1, 1)) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tiling rule."""

    tile: int  # side in pixels
    even: bool = False  # spread tiles evenly, or put them at multiples of their side

    def boxes(self, height: int, width: int) -> Iterator[Box]:
        """The tiles of a scene, row by row; a scene smaller than a tile is one box of its own size."""
        origins = even_origins if self.even else clipped_origins
        for top in origins(height, self.tile):
            for left in origins(width, self.tile):
                yield Box(left, top, min(left + self.tile, width), min(top + self.tile, height))
