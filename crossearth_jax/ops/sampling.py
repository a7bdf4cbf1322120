"""Bilinear sampling of maps at points given in relative coordinates.

A point is (x, y) in [0, 1] of the whole map and falls on pixel coordinate (x * width - 0.5, y * height - 0.5).
Outside the map everything is zero, so that values fade out over the outer half pixel. This is PyTorch's
`grid_sample(align_corners=False, padding_mode="zeros")`, with [0, 1] in place of [-1, 1].

A map is padded by a ring first, so that the four pixels around any point exist: its *neighbourhood*, numbered by
the position of its top left pixel in the padded map.
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
    """Where points fall in a padded map: the neighbourhood and the share of each of its four pixels."""

    row: Int[Array, " n"]
    column: Int[Array, " n"]
    shares: tuple[Float[Array, " n"], ...]  # top left, top right, bottom left, bottom right


def locate(points: Float[Array, "n 2"], height: int, width: int) -> Location:
    """Finds the neighbourhoods of points (x, y), which may also lie far outside, in a map of this size."""
    columns = jnp.clip(points[:, 0] * width - 0.5, -1, width)
    rows = jnp.clip(points[:, 1] * height - 0.5, -1, height)
    left, top = jnp.minimum(jnp.floor(columns), width - 1), jnp.minimum(jnp.floor(rows), height - 1)
    right, bottom = columns - left, rows - top
    shares = ((1 - bottom) * (1 - right), (1 - bottom) * right, bottom * (1 - right), bottom * right)
    return Location(top.astype(int) + 1, left.astype(int) + 1, shares)


def sample_points(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Samples one map bilinearly at points (x, y); zeros outside.

    Returns:
      The sampled values in the precision of `points`. The gradient reaches `values` only.
    """
    sample = _sample_by_products if platform() == "tpu" else _sample_by_gather
    return sample(values, jax.lax.stop_gradient(points))


def _sample_by_gather(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """One gather of whole neighbourhoods: on CPU several times faster than four of single pixels."""
    at = locate(points, *values.shape)
    neighbourhoods = jnp.stack(_corners(jnp.pad(values, 1)), axis=-1)
    gathered = neighbourhoods.at[at.row, at.column].get(mode="promise_in_bounds")
    return (gathered * jnp.stack(at.shares, axis=-1)).sum(-1)


@jax.checkpoint
def _sample_by_products(values: Float[Array, "h w"], points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """A matrix product with each point's row weights, then one with its column weights.

    A TPU fetches single numbers so slowly, and scatters them back even more so, that reading the whole map for each
    point is many times faster. The weights are cheap to make again: keeping them would fill the memory.
    """
    height, width = values.shape
    rows = jnp.maximum(0, 1 - jnp.abs(points[:, 1:] * height - 0.5 - jnp.arange(height)))
    columns = jnp.maximum(0, 1 - jnp.abs(points[:, :1] * width - 0.5 - jnp.arange(width)))
    lines = jnp.einsum("nh,hw->nw", rows, values.astype(points.dtype), precision="high")
    return (lines * columns).sum(1)


def sample_channels(values: Float[Array, "h w c"], points: Float[Array, "n 2"]) -> Float[Array, "n c"]:
    """Samples a map with many channels bilinearly at points (x, y); zeros outside.

    Returns:
      The sampled values in the precision of `points`.
    """
    padded = jnp.pad(values, ((1, 1), (1, 1), (0, 0)))
    at = locate(points, *values.shape[:2])
    start = at.row * padded.shape[1] + at.column
    flat = einops.rearrange(padded, "h w c -> (h w) c")
    # A sum of four gathers fuses into one loop; gathering neighbourhoods is slower where a pixel is a long row.
    return functools.reduce(
        operator.add,
        (
            flat.at[start + offset].get(mode="promise_in_bounds") * share[:, None]
            for offset, share in zip((0, 1, padded.shape[1], padded.shape[1] + 1), at.shares, strict=True)
        ),
    )


def pack_labels(labels: UInt8[Array, "h w"]) -> UInt32[Array, "h+1 w+1"]:
    """Packs the four labels of each neighbourhood into one number, so that a point needs one read.

    The ring around the map has label 255 (ignored).
    """
    corners = _corners(jnp.pad(labels, 1, constant_values=255).astype(jnp.uint32))
    return functools.reduce(operator.or_, (corner << (8 * i) for i, corner in enumerate(corners)))


def sample_label(
    packed: UInt32[Array, "h1 w1"], points: Float[Array, "n 2"], label: Int[Array, ""]
) -> Float[Array, " n"]:
    """Samples the binary mask of the pixels with this label bilinearly, without making the mask.

    Args:
      packed: `pack_labels` of the label map.
      points: relative coordinates (x, y).
      label: below 255.

    Returns:
      Share of each point's surroundings that has the label, in [0, 1].
    """
    at = locate(points, packed.shape[0] - 1, packed.shape[1] - 1)
    gathered = packed.at[at.row, at.column].get(mode="promise_in_bounds")
    hits = ((gathered >> (8 * i)) & 255 == label for i in range(4))
    return functools.reduce(operator.add, (hit * share for hit, share in zip(hits, at.shares, strict=True)))


def _corners(padded: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels of each neighbourhood of a padded map."""
    return padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
