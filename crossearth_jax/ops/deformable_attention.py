"""Sampling core of multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float


def deformable_attention(
    values: Float[Array, "b n k d"],
    sizes: Sequence[tuple[int, int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Averages values sampled bilinearly at a few locations per query, head and level; zeros outside the maps.

    One (level, point, corner) slot after another gathers from all levels' values in a scan: gathering all slots at
    once would hold 48 copies of the queries, and unrolled gathers have a backward pass four times slower on CPU.

    Args:
      values: the levels' maps, row-major and concatenated in level order; k heads of d channels.
      sizes: (height, width) of each of the l levels.
      locations: (x, y) relative to the map, [0, 1] from border to border, in float32.
      weights: of the p points of the l levels, usually a softmax over both.
    """
    height, width = np.array(sizes, np.int32).T
    start = np.cumsum(height * width) - height * width
    # Slots: levels (slow), points, then the four corners of a pixel square.
    locations = rearrange(locations, "b q k l p xy -> l p xy b q k")
    column, row = (locations[:, :, i] * _levels(n) - 0.5 for i, n in enumerate((width, height)))
    left, top = jnp.floor(column), jnp.floor(row)
    weights = rearrange(weights, "b q k l p -> l p b q k").astype(jnp.float32)

    def corner(right: int, below: int) -> tuple[jax.Array, jax.Array]:
        x, y = left + right, top + below
        inside = (x >= 0) & (x < _levels(width)) & (y >= 0) & (y < _levels(height))
        share = (1 - jnp.abs(column - x)) * (1 - jnp.abs(row - y)) * weights
        # Clipped before the conversion: a far-away float would overflow the integer.
        x, y = jnp.clip(x, 0, _levels(width - 1)), jnp.clip(y, 0, _levels(height - 1))
        index = _levels(start) + y.astype(jnp.int32) * _levels(width) + x.astype(jnp.int32)
        return index, jnp.where(inside, share, 0)

    def add(total: jax.Array, slot: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, share = slot
        return total + share[..., None] * jnp.take_along_axis(values, index[..., None], axis=1), None

    corners = [corner(right, below) for below in (0, 1) for right in (0, 1)]
    indices, shares = (rearrange(list(x), "c l p b q k -> (l p c) b q k") for x in zip(*corners, strict=True))
    total, _ = jax.lax.scan(add, jnp.zeros((*indices.shape[1:], values.shape[-1]), jnp.float32), (indices, shares))
    return total.astype(values.dtype)


def _levels(x: np.ndarray) -> np.ndarray:
    """Shapes numbers per level to broadcast over (level, point, batch, query, head)."""
    return x[:, None, None, None, None]
