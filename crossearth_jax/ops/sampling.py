"""Bilinear sampling of maps at points given in relative coordinates.

A point (x, y) in [0, 1] x [0, 1] has the pixel coordinates (x * width - 0.5, y * height - 0.5). Outside the map all
values are zero, so sampled values decrease to zero in the outer half pixel. This is PyTorch's
`grid_sample(align_corners=False, padding_mode="zeros")`, with coordinates in [0, 1] in place of [-1, 1].

Maps are first padded by one pixel on every side, so that every point has four surrounding pixels. These are called its
*neighbourhood*, which is identified by the position of its top left pixel in the padded map.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8, UInt32

from crossearth_jax.ops.backend import platform


class Location(NamedTuple):
    """Neighbourhoods of points in a padded map, and the bilinear weight of each of the four pixels."""

    row: Int[Array, " n"]
    column: Int[Array, " n"]
    shares: tuple[Float[Array, " n"], ...]  # top left, top right, bottom left, bottom right


def locate(points: Float[Array, "n 2"], height: int, width: int) -> Location:
    """Find the neighbourhoods of points (x, y) in a map of this size; points may lie far outside."""
    columns = jnp.clip(points[:, 0] * width - 0.5, -1, width)
    rows = jnp.clip(points[:, 1] * height - 0.5, -1, height)
    left, top = jnp.minimum(jnp.floor(columns), width - 1), jnp.minimum(jnp.floor(rows), height - 1)
    right, bottom = columns - left, rows - top
    shares = ((1 - bottom) * (1 - right), (1 - bottom) * right, bottom * (1 - right), bottom * right)
    return Location(top.astype(int) + 1, left.astype(int) + 1, shares)


def sample_points(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Sample one map bilinearly at points (x, y); zero outside.

    Returns:
      The sampled values in the precision of `points`. The gradient reaches `values` only.
    """
    sample = _sample_by_products if platform() == "tpu" else _sample_by_gather
    return sample(values, jax.lax.stop_gradient(points))


def _sample_by_gather(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Sample by one gather of whole neighbourhoods: on CPU several times faster than four gathers of single pixels."""
    at = locate(points, *values.shape)
    neighbourhoods = jnp.stack(_corners(jnp.pad(values, 1)), axis=-1)
    gathered = neighbourhoods.at[at.row, at.column].get(mode="promise_in_bounds")
    return (gathered * jnp.stack(at.shares, axis=-1)).sum(-1)


@jax.checkpoint
def _sample_by_products(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Sample by a matrix product with each point's row weights, then a weighted sum over the columns.

    A TPU gathers single numbers very slowly and scatters them even more slowly, so reading the whole map for each point
    is many times faster. The backward pass recomputes the weights, which is cheap; storing them would fill the memory.
    """
    height, width = values.shape
    rows = jnp.maximum(0, 1 - jnp.abs(points[:, 1:] * height - 0.5 - jnp.arange(height)))
    columns = jnp.maximum(0, 1 - jnp.abs(points[:, :1] * width - 0.5 - jnp.arange(width)))
    lines = jnp.einsum("nh,hw->nw", rows, values.astype(points.dtype), precision="high")
    return (lines * columns).sum(1)


def sample_channels(values: Float[Array, "h w c"], points: Float[Array, "n 2"]) -> Float[Array, "n c"]:
    """Sample a map with many channels bilinearly at points (x, y); zero outside.

    Returns:
      The sampled values in the precision of `points`.
    """
    padded = jnp.pad(values, ((1, 1), (1, 1), (0, 0)))
    at = locate(points, *values.shape[:2])
    start = at.row * padded.shape[1] + at.column
    flat = einops.rearrange(padded, "h w c -> (h w) c")
    # XLA fuses a sum of four gathers into one loop. With many channels this is faster than gathering neighbourhoods.
    return functools.reduce(
        operator.add,
        (
            flat.at[start + offset].get(mode="promise_in_bounds") * share[:, None]
            for offset, share in zip((0, 1, padded.shape[1], padded.shape[1] + 1), at.shares, strict=True)
        ),
    )


def pack_labels(labels: UInt8[Array, "h w"]) -> UInt32[Array, "h+1 w+1"]:
    """Pack the four labels of each neighbourhood into one number, so that sampling a point takes one read.

    The padding has label 255 (ignored).
    """
    corners = _corners(jnp.pad(labels, 1, constant_values=255).astype(jnp.uint32))
    return functools.reduce(operator.or_, (corner << (8 * i) for i, corner in enumerate(corners)))


def sample_label(
    packed: UInt32[Array, "h1 w1"], points: Float[Array, "n 2"], label: Int[Array, ""]
) -> Float[Array, " n"]:
    """Sample the binary mask of one label bilinearly, without computing the mask.

    Args:
      packed: `pack_labels` of the label map.
      points: relative coordinates (x, y).
      label: below 255.

    Returns:
      The sampled value of the mask at each point, in [0, 1].
    """
    at = locate(points, packed.shape[0] - 1, packed.shape[1] - 1)
    gathered = packed.at[at.row, at.column].get(mode="promise_in_bounds")
    hits = ((gathered >> (8 * i)) & 255 == label for i in range(4))
    return functools.reduce(operator.add, (hit * share for hit, share in zip(hits, at.shares, strict=True)))


def _corners(padded: Array) -> tuple[Array, Array, Array, Array]:
    """Return the top left, top right, bottom left and bottom right pixels of all neighbourhoods of a padded map."""
    return padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
