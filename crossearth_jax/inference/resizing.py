"""Resizing by the rules of the benchmark: images before the sliding window, scores to the size of the labels after it.

Sizes are static under `jax.jit`, so one small program is compiled per image size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from crossearth_jax.benchmark import Resize
from crossearth_jax.ops import opencv_resize
from crossearth_jax.ops.probabilities import best_probabilities
from crossearth_jax.ops.resize import apply_matrices, interpolation_matrix

STRIP = 256  # rows of full-size scores in memory at a time; those of a whole aerial photograph would fill gigabytes


def fitted_size(size: Sequence[int], resize: Resize | None) -> tuple[int, int]:
    """Return the (height, width) to which an image of (height, width) `size` is resized.

    With `keep_ratio` it is the largest size of the same aspect ratio that fits into the box, rounded half up. The long
    side of the box then applies to the long side of the image, as in mmcv. Images smaller than the box are enlarged.
    """
    height, width = size
    if resize is None:
        return height, width
    if not resize.keep_ratio:
        return resize.box
    scale = min(max(resize.box) / max(size), min(resize.box) / min(size))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resized_image(image: UInt8[np.ndarray, "h w 3"], resize: Resize | None) -> UInt8[np.ndarray, "n m 3"]:
    """Resize an image bilinearly with OpenCV's arithmetic, as the reference does: no anti-aliasing when shrinking."""
    size = fitted_size(image.shape[:2], resize)
    return image if image.shape[:2] == size else np.asarray(_resized(image, size))


@functools.partial(jax.jit, static_argnums=1)
def _resized(image: UInt8[Array, "h w 3"], size: tuple[int, int]) -> UInt8[Array, "n m 3"]:
    rows, columns = (
        (opencv_resize.axis_tables(length, (new,)), jnp.arange(new))
        for length, new in zip(image.shape[:2], size, strict=True)
    )
    return opencv_resize.sample_bilinear(image, scale=jnp.zeros((), jnp.int32), rows=rows, columns=columns)


def best_classes(
    scores: Float[np.ndarray, "n m k"], size: Sequence[int], temperatures: Sequence[float] = ()
) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "t h w"]]:
    """Resize the scores bilinearly to (height, width) `size` and find the class with the highest score per pixel.

    The result is computed in strips of `STRIP` rows, which bounds memory.

    Returns:
      The classes, and their probabilities at each of the `temperatures`.
    """
    if scores.shape[:2] == tuple(size):
        return scores.argmax(-1).astype(np.uint8), best_probabilities(scores, temperatures)
    labels, confidences = _best_classes(scores, (int(size[0]), int(size[1])), tuple(temperatures))
    return np.asarray(labels), np.asarray(confidences)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _best_classes(
    scores: Float[Array, "n m k"], size: tuple[int, int], temperatures: tuple[float, ...]
) -> tuple[UInt8[Array, "h w"], Float[Array, "t h w"]]:
    height, width = size
    rows, columns = interpolation_matrix(scores.shape[0], height), interpolation_matrix(scores.shape[1], width)
    strip = min(STRIP, height)
    rows = np.pad(rows, ((0, -height % strip), (0, 0)))

    def classes(strip_rows: Float[Array, "s n"]) -> tuple[UInt8[Array, "s w"], Float[Array, "t s w"]]:
        found = apply_matrices(scores, strip_rows, columns)
        return jnp.argmax(found, axis=-1).astype(jnp.uint8), best_probabilities(found, temperatures)

    labels, confidences = jax.lax.map(classes, jnp.asarray(rearrange(rows, "(p s) n -> p s n", s=strip)))
    return rearrange(labels, "p s w -> (p s) w")[:height], rearrange(confidences, "p t s w -> t (p s) w")[:, :height]
