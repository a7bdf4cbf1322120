"""How the benchmark scores one batch: resize the images, slide windows, resize the scores back, take the best class.

The labels keep their size: the scores come to them. Sizes are static, so that everything is one compiled program per
size of image.
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
from crossearth_jax.config import EvaluateConfig
from crossearth_jax.models.network import Params, SegmentationModel
from crossearth_jax.ops import opencv_resize
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.ops.resize import apply_matrices, interpolation_matrix
from crossearth_jax.ops.tiling import sliding_scores

STRIP = 256  # rows of full-size scores that exist at a time: those of a whole photograph would fill gigabytes


def fitted_size(size: Sequence[int], resize: Resize | None) -> tuple[int, int]:
    """The (height, width) that an image of (height, width) gets: the largest that fits into the box, rounded half up.

    The box is turned to the image's orientation, as in mmcv; an image smaller than the box grows.
    """
    height, width = size
    if resize is None:
        return height, width
    if not resize.keep_ratio:
        return resize.box
    scale = min(max(resize.box) / max(size), min(resize.box) / min(size))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_images(images: UInt8[Array, "b h w 3"], size: tuple[int, int]) -> UInt8[Array, "b n m 3"]:
    """Resizes bilinearly in OpenCV's arithmetic, as the reference does, without smoothing when it shrinks."""
    if images.shape[1:3] == size:
        return images
    rows, columns = (
        (opencv_resize.axis_tables(length, (new,)), jnp.arange(new))
        for length, new in zip(images.shape[1:3], size, strict=True)
    )
    one = functools.partial(opencv_resize.sample_bilinear, scale=jnp.zeros((), jnp.int32), rows=rows, columns=columns)
    return jax.vmap(one)(images)


def predict_scores(
    model: SegmentationModel,
    config: EvaluateConfig,
    params: Params,
    images: UInt8[Array, "b h w 3"],
    resize: Resize | None = None,
) -> Float[Array, "b n m k"]:
    """Class scores of images of any size by sliding window, at the size the protocol resizes them to."""
    images = resize_images(images, fitted_size(images.shape[1:3], resize))
    score = functools.partial(model.scores, params)
    return sliding_scores(score, normalize(images), config.window, config.stride, multiple=model.config.vit.patch_size)


def predict_labels(
    model: SegmentationModel,
    config: EvaluateConfig,
    params: Params,
    images: UInt8[Array, "b h w 3"],
    resize: Resize | None = None,
) -> UInt8[Array, "b h w"]:
    """Best classes of images of any size, at their own size."""
    return best_classes(predict_scores(model, config, params, images, resize), images.shape[1:3])


def best_classes(scores: Float[Array, "b n m k"], size: Sequence[int]) -> UInt8[Array, "b h w"]:
    """The class with the highest score, after resizing the scores bilinearly to (height, width).

    Computed in strips of rows; a resize to the same size leaves the scores as they are.
    """
    height, width = size
    if scores.shape[1:3] == (height, width):
        return jnp.argmax(scores, axis=-1).astype(jnp.uint8)
    rows, columns = interpolation_matrix(scores.shape[1], height), interpolation_matrix(scores.shape[2], width)
    strip = min(STRIP, height)
    rows = np.pad(rows, ((0, -height % strip), (0, 0)))

    def classes(strip_rows: Float[Array, "s n"]) -> UInt8[Array, "b s w"]:
        return jnp.argmax(apply_matrices(scores, strip_rows, columns), axis=-1).astype(jnp.uint8)

    strips = jax.lax.map(classes, jnp.asarray(rearrange(rows, "(t s) n -> t s n", s=strip)))
    return rearrange(strips, "t b s w -> b (t s) w")[:, :height]
