"""Sine encoding of positions on a feature map, as in DETR and Mask2Former."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Float


def sine_encoding(height: int, width: int, features: int) -> Float[Array, "h w c"]:
    """Encode row and column of every pixel, rows in the first half of the features and columns in the second.

    Positions run from 2 pi / n to 2 pi along an axis of n pixels (no half-pixel shift). Sines and cosines alternate.
    Their wavelengths grow geometrically from 2 pi towards 10000 times that. Always float32.
    """
    rows = repeat(_encode_axis(height, features // 2), "h c -> h w c", w=width)
    columns = repeat(_encode_axis(width, features // 2), "w c -> h w c", h=height)
    return jnp.concatenate([rows, columns], axis=-1)


def _encode_axis(size: int, features: int) -> Float[Array, "n c"]:
    positions = np.arange(1, size + 1) / (size + 1e-6) * 2 * math.pi
    pairs = np.arange(features) // 2
    angles = positions[:, None] / 10000 ** (2 * pairs / features)
    even = np.arange(features) % 2 == 0
    return jnp.asarray(np.where(even, np.sin(angles), np.cos(angles)), jnp.float32)
