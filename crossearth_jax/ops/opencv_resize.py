"""Resampling of 8-bit images and labels by lookup tables, bit for bit as OpenCV's `resize`.

The size of the training images and the scales to which they may be resized are static. So everything that depends on
them (source positions, 11-bit weights) is computed once in NumPy, in the precision that OpenCV uses. The traced program
only looks up the rows of the drawn scale.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, UInt8

WEIGHT_ONE = 2048  # a bilinear weight of 1 in fixed point


class AxisTables(NamedTuple):
    """Lookup tables for resampling one axis of length n to k sizes: one row per size, m entries as for the largest.

    Attributes:
      low, high: the two source positions that a bilinear sample reads.
      low_weight, high_weight: their weights, in units of 1/2048.
      nearest: the source position of a nearest-neighbour sample.
      first: for each source position and for n, the first position in the resized axis whose nearest source is this one
        or a later one.
    """

    low: Int[np.ndarray, "k m"]
    high: Int[np.ndarray, "k m"]
    low_weight: Int[np.ndarray, "k m"]
    high_weight: Int[np.ndarray, "k m"]
    nearest: Int[np.ndarray, "k m"]
    first: Int[np.ndarray, "k n1"]


def resized_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return the (height, width) of an image whose short side becomes `short`, with the aspect ratio kept.

    If the long side would exceed `longest`, both sides shrink. As in the reference, sizes are rounded twice, half up:
    first the requested size, then the size that fits into it at the original aspect ratio.
    """
    scale = short / min(height, width)
    wanted = [short * 1.0, scale * width] if height < width else [scale * height, short * 1.0]
    if max(wanted) > longest:
        shrink = longest / max(wanted)
        wanted = [side * shrink for side in wanted]
    wanted = [int(side + 0.5) for side in wanted]
    scale = min(max(wanted) / max(height, width), min(wanted) / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


@functools.cache
def axis_tables(length: int, sizes: Sequence[int]) -> AxisTables:
    """Build the tables of an axis of `length` pixels for every size to which it may be resized."""
    step = 1.0 / (np.asarray(sizes)[:, None] / length)
    position = np.arange(max(sizes))
    centre = ((position + 0.5) * step - 0.5).astype(np.float32)
    low = np.floor(centre)
    fraction = centre - low
    nearest = np.minimum(np.floor(position * step), length - 1)
    first = np.stack([np.searchsorted(row, np.arange(length + 1)) for row in nearest])
    tables = AxisTables(
        low=np.clip(low, 0, length - 1),
        high=np.clip(low + 1, 0, length - 1),
        low_weight=np.rint((1 - fraction) * WEIGHT_ONE),
        high_weight=np.rint(fraction * WEIGHT_ONE),
        nearest=nearest,
        first=first,
    )
    return AxisTables(*(table.astype(np.int32) for table in tables))


def look_up(table: Int[np.ndarray, "k m"], scale: Int[Array, ""], positions: Int[Array, " p"]) -> Int32[Array, " p"]:
    """Return the entries of one scale's row at the given positions."""
    return jnp.asarray(table)[scale, positions]


def sample_bilinear(
    image: UInt8[Array, "h w c"],
    scale: Int[Array, ""],
    rows: tuple[AxisTables, Int[Array, " s"]],
    columns: tuple[AxisTables, Int[Array, " t"]],
) -> UInt8[Array, "s t c"]:
    """Compute pixels of the bilinearly resized image, in OpenCV's fixed-point arithmetic.

    The horizontal pass keeps 11 fractional bits. The vertical pass drops 4 of them, multiplies by the 11-bit weight,
    drops 16 bits of each of the two products, and rounds the last 2 bits of their sum half up.

    Args:
      image: the source.
      scale: index of the scale.
      rows: tables of the vertical axis, and the rows of the resized image to compute.
      columns: the same for the horizontal axis.
    """
    tables, positions = columns
    left, right = look_up(tables.low, scale, positions), look_up(tables.high, scale, positions)
    left_weight = look_up(tables.low_weight, scale, positions)[:, None]
    right_weight = look_up(tables.high_weight, scale, positions)[:, None]

    def tap(source: np.ndarray, weight: np.ndarray) -> Int32[Array, "s t c"]:
        lines = image[look_up(source, scale, rows[1])]
        line = lines[:, left].astype(jnp.int32) * left_weight + lines[:, right].astype(jnp.int32) * right_weight
        return (look_up(weight, scale, rows[1])[:, None, None] * (line >> 4)) >> 16

    total = tap(rows[0].low, rows[0].low_weight) + tap(rows[0].high, rows[0].high_weight)
    return ((total + 2) >> 2).astype(jnp.uint8)


def sample_nearest(
    label: UInt8[Array, "h w"],
    scale: Int[Array, ""],
    rows: tuple[AxisTables, Int[Array, " s"]],
    columns: tuple[AxisTables, Int[Array, " t"]],
) -> UInt8[Array, "s t"]:
    """Compute pixels of the label map resized by nearest neighbour; arguments as for `sample_bilinear`."""
    lines = label[look_up(rows[0].nearest, scale, rows[1])]
    return lines[:, look_up(columns[0].nearest, scale, columns[1])]


def box_weights(
    tables: AxisTables, scale: Int[Array, ""], starts: Int[Array, " t"], length: Int[Array, ""]
) -> Float32[Array, "t n"]:
    """Count how often nearest-neighbour resampling of intervals reads each source position.

    Args:
      tables: tables of the axis.
      scale: index of the scale.
      starts: first position of each interval in the resized image.
      length: number of positions in each interval.
    """
    first = jnp.asarray(tables.first)[scale]
    inside = jnp.clip(first, starts[:, None], starts[:, None] + length)
    return jnp.diff(inside, axis=1).astype(jnp.float32)
