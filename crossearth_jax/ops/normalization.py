"""Conversion between 8-bit RGB images and the network's normalised input."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

# ImageNet statistics on the 0..255 scale, RGB (the reference's data preprocessor).
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def normalize(images: Shaped[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Turn RGB on the 0..255 scale (8-bit or float) into the network's float32 input."""
    return (images.astype(jnp.float32) - MEAN) / STD


def denormalize(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Invert `normalize`: return float32 RGB on the 0..255 scale, neither rounded nor clipped."""
    return images * STD + MEAN


def standardize(
    images: Float[Array, "*b h w 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "*b h w 3"]:
    """Normalise images again, with these statistics (RGB, 0..255 scale) instead of ImageNet's.

    Args:
      images: normalised with ImageNet's statistics.
      mean: per channel.
      std: per channel.
    """
    return (denormalize(images) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
