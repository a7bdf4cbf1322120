"""Resizing by dense interpolation matrices, one per axis.

Pixel centres are at half-integer positions, borders are repeated, and there is no antialiasing when an image shrinks.
That is PyTorch's `interpolate(align_corners=False, antialias=False)`. `jax.image.resize` cannot reproduce it: it has
another cubic kernel, renormalises at borders, and accepts no scale factors. The matrices are small constants, so a
resize is two matrix products, whose gradient needs no scatter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Axes of height and width -> matrix products that resize the height, then the width.
_PRODUCTS = {
    (-3, -2): ("... h w c, n h -> ... n w c", "... n w c, m w -> ... n m c"),
    (-2, -1): ("... h w, n h -> ... n w", "... n w, m w -> ... n m"),
}


def linear_kernel(distance: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return the weight of a neighbour at this distance in linear interpolation."""
    return np.maximum(0, 1 - np.abs(distance))


def cubic_kernel(distance: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return the weight of a neighbour at this distance in cubic convolution (Keys 1981), a = -0.75 as in PyTorch."""
    a, x = -0.75, np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def interpolation_matrix(
    size: int,
    new_size: int,
    scale: float | None = None,
    kernel: Callable[[np.ndarray], np.ndarray] = linear_kernel,
) -> Float[np.ndarray, "new_size size"]:
    """Compute the matrix that resizes one axis.

    Args:
      size: length of the axis.
      new_size: its length after resizing.
      scale: scale factor; output i samples position (i + 0.5) / scale - 0.5. None means `new_size / size`.
      kernel: `linear_kernel` or `cubic_kernel`.

    Returns:
      Weights in float32; every row sums to 1.
    """
    source = (np.arange(new_size) + 0.5) / (scale or new_size / size) - 0.5
    neighbours = np.floor(source)[:, None] + np.arange(-1, 3)
    weights = kernel(source[:, None] - neighbours)
    matrix = np.zeros((new_size, size))
    columns = np.clip(neighbours, 0, size - 1).astype(int)
    np.add.at(matrix, (np.arange(new_size)[:, None], columns), weights)
    return matrix.astype(np.float32)


def _precision(images: Array) -> jax.lax.Precision | None:
    """Return the precision of products with interpolation weights: at the default a TPU rounds float32 to bfloat16."""
    return jax.lax.Precision.HIGHEST if images.dtype == jnp.float32 else None


def apply_matrices(
    images: Float[Array, "*old"],
    rows: Float[np.ndarray, "n h"] | Float[Array, "n h"],
    columns: Float[np.ndarray, "m w"] | Float[Array, "m w"],
    axes: tuple[int, int] = (-3, -2),
) -> Float[Array, "*new"]:
    """Resize the height by the matrix `rows` and the width by `columns`, in the precision of `images`."""
    precision = _precision(images)
    for product, matrix in zip(_PRODUCTS[axes], (rows, columns), strict=True):
        images = jnp.einsum(product.replace(" ", ""), images, matrix.astype(images.dtype), precision=precision)
    return images


def resize_bilinear(
    images: Float[Array, "*old"], size: Sequence[int], axes: tuple[int, int] = (-3, -2)
) -> Float[Array, "*new"]:
    """Resize bilinearly to a given size, without antialiasing.

    Args:
      images: any leading axes, then height, width and channels; or without channels.
      size: new (height, width).
      axes: (-3, -2) for channels last, (-2, -1) for maps without channels.
    """
    height, width = (images.shape[axis] for axis in axes)
    rows, columns = interpolation_matrix(height, size[0]), interpolation_matrix(width, size[1])
    return apply_matrices(images, rows, columns, axes)


def sum_enlarged(maps: Sequence[Float[Array, "b _ _ c"]], size: Sequence[int]) -> Float[Array, "b n m c"]:
    """Resize maps of several sizes bilinearly to (height, width) `size` and add them.

    One product resizes the heights of all maps and adds them: half the time and memory of adding enlarged maps.
    """
    precision = _precision(maps[0])
    rows = np.concatenate([interpolation_matrix(x.shape[1], size[0]) for x in maps], axis=1)
    columns = [interpolation_matrix(x.shape[2], size[1]) for x in maps]
    wide = [
        jnp.einsum("bhwc,mw->bhmc", x, matrix.astype(x.dtype), precision=precision)
        for x, matrix in zip(maps, columns, strict=True)
    ]
    stacked = jnp.concatenate(wide, axis=1)
    return jnp.einsum("bhmc,nh->bnmc", stacked, rows.astype(stacked.dtype), precision=precision)


def area_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Compute the matrix that averages one axis: output i is the mean of the i-th of `new_size` equal parts.

    A pixel on the border of two parts counts in each with the fraction that lies in it.
    """
    borders = np.arange(new_size + 1) * size / new_size
    starts, ends = borders[:-1, None], borders[1:, None]
    pixels = np.arange(size)
    overlap = np.clip(np.minimum(ends, pixels + 1) - np.maximum(starts, pixels), 0, None)
    return (overlap * new_size / size).astype(np.float32)


def resize_area(images: Float[Array, "*old"], size: Sequence[int]) -> Float[Array, "*new"]:
    """Shrink images (channels last) to (height, width) `size` by averaging equal areas, which keeps their mean."""
    height, width = images.shape[-3:-1]
    return apply_matrices(images, area_matrix(height, size[0]), area_matrix(width, size[1]))


def scale_bilinear(images: Float[Array, "*b h w c"], factor: float) -> Float[Array, "*b n m c"]:
    """Resize bilinearly by a given factor; sizes are rounded down.

    If a size is rounded, the result differs from `resize_bilinear` to that size: three rows times 0.5 become the mean
    of the first two rows, where `resize_bilinear` gives the middle row.
    """
    if factor == 1:
        return images
    rows, columns = (interpolation_matrix(n, math.floor(n * factor), factor) for n in images.shape[-3:-1])
    return apply_matrices(images, rows, columns)
