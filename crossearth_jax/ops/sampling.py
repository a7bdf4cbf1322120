"""Bilinear sampling of maps at points given in relative coordinates.

A point is (x, y) in [0, 1] of the whole map and falls on pixel coordinate (x * width - 0.5, y * height - 0.5).
Outside the map everything is zero, so that values fade out over the outer half pixel. This is PyTorch's
`grid_sample(align_corners=False, padding_mode="zeros")`, with [0, 1] in place of [-1, 1].
"""

from __future__ import annotations

import functools
import operator

import einops
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def bilinear_corners(
    points: Float[Array, "n 2"], height: int, width: int
) -> tuple[Int[Array, "4 n"], Float[Array, "4 n"]]:
    """Finds the four pixels around each point.

    Args:
      points: (x, y), relative coordinates; may lie outside [0, 1].
      height: rows of the map.
      width: columns of the map.

    Returns:
      The pixels' row-major positions in the flattened map, and their weights. A corner outside the map has
      weight 0 and some valid position.
    """
    column, row = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(column), jnp.floor(row)
    columns = jnp.stack([left, left + 1, left, left + 1])
    rows = jnp.stack([top, top, top + 1, top + 1])
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    weights = (1 - jnp.abs(column - columns)) * (1 - jnp.abs(row - rows))
    # Clipped before the conversion: a far-away float would overflow the integer.
    rows = jnp.clip(rows, 0, height - 1).astype(int)
    columns = jnp.clip(columns, 0, width - 1).astype(int)
    return rows * width + columns, jnp.where(inside, weights, 0)


def sample_points(
    values: Float[Array, "h w"] | Float[Array, "h w c"], points: Float[Array, "n 2"]
) -> Float[Array, " n"] | Float[Array, "n c"]:
    """Samples a map bilinearly at relative points (x, y); zeros outside.

    Args:
      values: one map, or one with channels last (a point then reads whole rows of channels).
      points: relative coordinates.

    Returns:
      The sampled values in the precision of `points`.
    """
    height, width = values.shape[:2]
    flat = einops.rearrange(values, "h w ... -> (h w) ...")
    indices, weights = bilinear_corners(points, height, width)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - 2))
    # A sum of four gathers fuses into one loop; gathering (n, 4, c) at once is four times slower on CPU.
    return functools.reduce(operator.add, (flat[i] * w for i, w in zip(indices, weights, strict=True)))


def sample_label(labels: UInt8[Array, "h w"], points: Float[Array, "n 2"], label: Int[Array, ""]) -> Float[Array, " n"]:
    """Samples the binary mask `labels == label` bilinearly, without making the mask.

    Args:
      labels: a label map.
      points: relative coordinates (x, y).
      label: the label whose mask is sampled.

    Returns:
      Share of each point's surroundings that has the label, in [0, 1].
    """
    indices, weights = bilinear_corners(points, *labels.shape)
    return einops.einsum(labels.reshape(-1)[indices] == label, weights, "corner n, corner n -> n")
