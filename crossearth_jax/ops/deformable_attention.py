"""Sampling core of multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float


def deformable_attention(
    values: Float[Array, "b n k d"],
    sizes: Sequence[Sequence[int]],
    locations: Float[Array, "b q k l p 2"],
    weights: Float[Array, "b q k l p"],
) -> Float[Array, "b q k d"]:
    """Averages values sampled bilinearly at a few locations per query, head and level; zeros outside the maps.

    A scan takes one (level, point) slot after another. Sampled values are not kept for the backward pass: all slots
    together hold 48 copies of the queries, and gathering them again is cheap. (Without the scan, XLA fuses the
    slots' scatters into something several times slower on CPU.)

    Args:
      values: the levels' maps, row-major and concatenated in level order; k heads of d channels.
      sizes: (height, width) of each of the l levels.
      locations: (x, y) relative to the map, [0, 1] from border to border, in float32.
      weights: of the p points of the l levels, usually a softmax over both.
    """
    extents = np.array(sizes, np.int32)
    areas = extents.prod(axis=1)
    levels = np.concatenate([extents, (np.cumsum(areas) - areas)[:, None]], axis=1)

    @jax.checkpoint
    def sample(level: jax.Array, location: jax.Array, weight: jax.Array) -> jax.Array:
        height, width, start = level
        column, row = location[0] * width - 0.5, location[1] * height - 0.5
        left, top = jnp.floor(column), jnp.floor(row)
        total = jnp.zeros(())
        for x, y in itertools.product((left, left + 1), (top, top + 1)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share = (1 - jnp.abs(column - x)) * (1 - jnp.abs(row - y)) * weight
            # Clipped before the conversion: a far-away float would overflow the integer.
            x, y = (jnp.clip(i, 0, n - 1).astype(int) for i, n in ((x, width), (y, height)))
            pixels = jnp.take_along_axis(values, (start + y * width + x)[..., None], axis=1)
            total += jnp.where(inside, share, 0)[..., None] * pixels
        return total

    points = locations.shape[-2]
    slots = (
        repeat(jnp.asarray(levels), "l x -> (l p) x", p=points),
        rearrange(locations, "b q k l p xy -> (l p) xy b q k"),
        rearrange(weights.astype(jnp.float32), "b q k l p -> (l p) b q k"),
    )
    start = jnp.zeros((*locations.shape[:3], values.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(lambda total, slot: (total + sample(*slot), None), start, slots)
    return total.astype(values.dtype)
