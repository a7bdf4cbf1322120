"""Rotary position embedding (RoPE, arXiv 2104.09864) along the two axes of a patch grid, as in DINOv3."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE = 100.0  # the longest period, in units of the distance between the centre and the border of the image


class Rotation(NamedTuple):
    """Cosine and sine of the angle by which each pair of features of each token is turned."""

    cosine: Float[Array, "n d"]
    sine: Float[Array, "n d"]


def rotation(height: int, width: int, features: int, before: int, after: int = 0) -> Rotation:
    """Compute the rotation of a grid of patches, with tokens `before` and `after` it that have no position.

    Centres of patches have coordinates from -1 to 1 along each axis, whatever the size of the grid. With q = features /
    4, the i-th of q pairs turns by 2 pi times the row's coordinate divided by 100^(i / q). The next q pairs turn by the
    column's coordinate. A pair consists of features i and i + features / 2.
    """
    quarter = features // 4
    frequencies = 2 * math.pi / BASE ** (np.arange(quarter) / quarter)
    coordinates = (2 * np.arange(0.5, size) / size - 1 for size in (height, width))
    rows, columns = (centres[:, None] * frequencies for centres in coordinates)

    def table(function: np.ufunc) -> Float[Array, "n d"]:
        # The large array is built from small constants, so that it does not become part of the program.
        along_rows, along_columns = (
            jnp.broadcast_to(jnp.asarray(function(angles), jnp.float32), (height, width, quarter))
            for angles in (rows[:, None], columns[None])
        )
        patches = jnp.concatenate([along_rows, along_columns] * 2, axis=-1).reshape(-1, features)
        start, end = (jnp.full((count, features), function(0.0), jnp.float32) for count in (before, after))
        return jnp.concatenate([start, patches, end])

    return Rotation(table(np.cos), table(np.sin))


def rotate(x: Float[Array, "b n k d"], angles: Rotation) -> Float[Array, "b n k d"]:
    """Turn the features of every token and head, in float32; the result has the type of `x`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * angles.cosine[:, None] + turned * angles.sine[:, None]).astype(x.dtype)
