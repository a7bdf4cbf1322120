"""Sliding windows over images larger than the network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

ScoreFn = Callable[[Float[Array, "n h w 3"]], Float[Array, "n h w k"]]


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis; the last window is shifted back to end at the border.

    An axis shorter than the window has the single start 0 (its window is the whole axis).
    """
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, size - window), 0) for i in range(count)]


def windows(size: Sequence[int], window: int, stride: int) -> list[tuple[int, int]]:
    """(top, left) of all windows over an image of (height, width), row by row."""
    return [(y, x) for y in window_starts(size[0], window, stride) for x in window_starts(size[1], window, stride)]


def sliding_scores(
    score_fn: ScoreFn, images: Float[Array, "b h w 3"], window: int, stride: int, batch: int = 4, multiple: int = 1
) -> Float[Array, "b h w k"]:
    """Averages the scores of overlapping windows; jittable.

    Args:
      score_fn: scores of a batch of windows, at their size.
      images: an axis shorter than the window is used whole.
      window: side of the square windows.
      stride: distance of windows, at most `window`.
      batch: windows of one image that go through `score_fn` together.
      multiple: an axis that is shorter than the window and no multiple of this, or less than twice this (the
        network's coarsest features have half its resolution), is filled up at its end with zeros (the mean colour of
        normalised images), as training fills its crops; the reference fails there.
    """
    height, width = images.shape[1:3]
    short = [max(-n % multiple, 2 * multiple - n) if n < window else 0 for n in (height, width)]
    if any(short):
        images = jnp.pad(images, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
        return sliding_scores(score_fn, images, window, stride, batch)[:, :height, :width]
    size = images.shape[1:3]
    extent = min(window, size[0]), min(window, size[1])
    starts = np.array(windows(size, window, stride), np.int32)
    counts = np.zeros((*size, 1), np.float32)
    for top, left in starts:
        counts[top : top + extent[0], left : left + extent[1]] += 1
    batch = min(batch, len(starts))
    # The last group is filled up with repetitions that are not added.
    groups = np.resize(starts, (-(-len(starts) // batch), batch, 2))
    valid = np.arange(groups.size // 2).reshape(-1, batch) < len(starts)
    xs = jnp.asarray(groups), jnp.asarray(valid)

    def add_group(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        crops = [jax.lax.dynamic_slice(images, (0, y, x, 0), (len(images), *extent, 3)) for y, x in group[0]]
        # The image index is the slow axis, so that a batch split over devices stays where it is.
        scores = score_fn(rearrange(crops, "n b h w c -> (b n) h w c"))
        scores = rearrange(scores, "(b n) h w k -> n b h w k", n=batch) * group[1][:, None, None, None, None]
        for (y, x), score in zip(group[0], scores, strict=True):
            index = (0, y, x, 0)
            patch = jax.lax.dynamic_slice(total, index, score.shape) + score
            total = jax.lax.dynamic_update_slice(total, patch, index)
        return total, None

    crop = jax.ShapeDtypeStruct((1, *extent, 3), images.dtype)
    classes = jax.eval_shape(score_fn, crop).shape[-1]
    total, _ = jax.lax.scan(add_group, jnp.zeros((*images.shape[:3], classes), jnp.float32), xs)
    return total / counts
