"""Assign geographic blocks of the globe to splits and cut them into tiles.

The globe is divided into 9 x 9 degree blocks. Block (row, column), counted from the north-west corner, has
the phase (column + 2 row + 2) mod 5: phases 0, 1, 2 are train, 3 is validation, 4 is test. Such a knight's-move
lattice distributes each split evenly over latitudes and longitudes. Block size, multiplier and offset were chosen from
the labels alone. Blocks of 9 degrees leave few pixels unused on either grid (135 and 102.4 pixels for 32-pixel tiles).
Of the ten knight's-move lattices (multiplier 2 or 3), the chosen one has the most balanced tile counts and class shares
over all climates, seasons and splits.

The assignment is geographic: a block has the same split in every climate and season. Tiles lie inside a block and start
at its north-west corner, which leaves at least 6 pixels, and at least 0.46 degrees, between tiles of neighbouring
blocks. Tiles of different splits therefore never touch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

BLOCK_DEGREES = 9
SPLITS = ("train", "train", "train", "validation", "test")  # by phase


@dataclasses.dataclass(frozen=True)
class Tile:
    """Top-left pixel of a square tile on the grid of its season."""

    row: int
    column: int

    def cut(self, raster: np.ndarray, size: int) -> np.ndarray:
        """Return the `size` x `size` pixels of the tile as a view of `raster`."""
        return raster[self.row : self.row + size, self.column : self.column + size]


def split_of_block(row: int, column: int) -> str:
    """Return the split of the block in block row `row` (from the north pole) and column `column` (from 180 W)."""
    return SPLITS[(column + 2 * row + 2) % len(SPLITS)]


def tiles(split: str, grid: tuple[int, int], size: int, stride: int) -> Iterator[Tile]:
    """Yield square tiles of `size` pixels, `stride` apart, inside the blocks of `split`, from the north-west.

    Args:
      split: "train", "validation" or "test".
      grid: height and width of a global plate carrée raster (180 x 360 degrees).
      size: side of a tile in pixels.
      stride: distance between neighbouring tiles of a block in pixels.
    """
    height, width = grid
    for block_row in range(180 // BLOCK_DEGREES):
        for block_column in range(360 // BLOCK_DEGREES):
            if split_of_block(block_row, block_column) == split:
                for row in _starts(block_row, height / 180, size, stride):
                    for column in _starts(block_column, width / 360, size, stride):
                        yield Tile(row, column)


def _starts(block: int, pixels_per_degree: float, size: int, stride: int) -> range:
    """Return the first pixel of each tile of one block along one axis; only pixels entirely inside the block count."""
    # Without the rounding, floating-point errors could move an edge off a pixel boundary.
    first = math.ceil(round(block * BLOCK_DEGREES * pixels_per_degree, 6))
    last = math.floor(round((block + 1) * BLOCK_DEGREES * pixels_per_degree, 6))
    return range(first, last - size + 1, stride)
