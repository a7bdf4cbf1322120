"""Random scale, class-balanced crop and flips, as one resampling of static shape.

The reference resizes the whole image, crops it and reverses its columns. Here scale, crop and flips only determine
which pixels of the resized image are needed, and `ops.opencv_resize` computes only those.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float32, Int, Key, UInt8

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import AugmentConfig, UserError
from crossearth_jax.ops import opencv_resize
from crossearth_jax.ops.opencv_resize import AxisTables


class GeometricDraws(NamedTuple):
    """The random choices for one image.

    Attributes:
      scale: index into the scales.
      boxes: first row and column of the candidate crops in the resized image; the last one is used if all others are
        refused.
      flip: whether the columns are reversed.
      vertical_flip: whether the rows are reversed.
    """

    scale: Int[Array, ""]
    boxes: Int[Array, "t 2"]
    flip: Bool[Array, ""]
    vertical_flip: Bool[Array, ""]


def resized_sizes(config: AugmentConfig, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the (height, width) of the resized image at each of the scales."""
    shorts = [int(config.crop_size * scale + 1e-6) for scale in config.scales]
    longest = int(config.longest * config.crop_size)
    return tuple(opencv_resize.resized_size(height, width, short, longest) for short in shorts)


def draw_geometric(config: AugmentConfig, key: Key[Array, ""], height: int, width: int) -> GeometricDraws:
    """Draw scale, candidate boxes and flips for an image of the given size."""
    # One draw for everything: on CPU every further draw adds a second to the compilation.
    uniform = jax.random.uniform(key, (3 + 2 * (config.crop_tries + 1),))
    scale, flip, vertical_flip = uniform[:3]
    corners = rearrange(uniform[3:], "(t yx) -> t yx", yx=2)
    scale = jnp.floor(scale * len(config.scales)).astype(jnp.int32)
    margin = jnp.maximum(jnp.asarray(resized_sizes(config, height, width))[scale] - config.crop_size, 0)
    return GeometricDraws(
        scale=scale,
        boxes=jnp.floor(corners * (margin + 1)).astype(jnp.int32),
        flip=config.flip & (flip < 0.5),
        vertical_flip=config.vertical_flip & (vertical_flip < 0.5),
    )


def geometric(
    config: AugmentConfig,
    draws: GeometricDraws,
    image: UInt8[Array, "h w 3"],
    label: UInt8[Array, "h w"],
    inside: Bool[Array, "h w"] | None = None,
) -> tuple[UInt8[Array, "s s 3"], UInt8[Array, "s s"], Bool[Array, "s s"]]:
    """Resize, crop and flip one sample.

    A resized image that is smaller than the crop is placed in its upper left corner.

    Args:
      config: sizes and limits.
      draws: the random choices.
      image: RGB.
      label: train ids, 255 = ignored.
      inside: which pixels are not padding, a rectangle; None if there is no padding.

    Returns:
      The image, the label (255 in the padding) and which pixels are not padding, again a rectangle.

    Raises:
      UserError: `max_class_share` is one half or less.
    """
    sizes = np.asarray(resized_sizes(config, *label.shape))
    tables = [opencv_resize.axis_tables(n, tuple(map(int, m))) for n, m in zip(label.shape, sizes.T, strict=True)]
    size = jnp.asarray(sizes)[draws.scale]
    crop = jnp.minimum(size, config.crop_size)
    corner = choose_box(config, tables, draws, crop, label)
    index = jnp.arange(config.crop_size)
    flips = (draws.vertical_flip, draws.flip)
    read = [jnp.where(flips[axis], crop[axis] - 1 - index, index) for axis in (0, 1)]
    # Positions outside the image are clipped to it; their labels are replaced below.
    read = [jnp.clip(corner[axis] + read[axis], 0, size[axis] - 1) for axis in (0, 1)]
    rows, columns = zip(tables, read, strict=True)
    within = [index < crop[axis] for axis in (0, 1)]
    if inside is not None:
        sources = [opencv_resize.look_up(tables[axis].nearest, draws.scale, read[axis]) for axis in (0, 1)]
        within = [within[axis] & inside.any(1 - axis)[sources[axis]] for axis in (0, 1)]
    shown = within[0][:, None] & within[1]
    cropped = opencv_resize.sample_bilinear(image, draws.scale, rows, columns)
    cropped_label = opencv_resize.sample_nearest(label, draws.scale, rows, columns)
    return cropped, jnp.where(shown, cropped_label, IGNORE).astype(jnp.uint8), shown


def choose_box(
    config: AugmentConfig,
    tables: list[AxisTables],
    draws: GeometricDraws,
    crop: Int[Array, " 2"],
    label: UInt8[Array, "h w"],
) -> Int[Array, " 2"]:
    """Return the first candidate box in which every class covers less than `max_class_share`, else the last box.

    Shares are of the labelled pixels. A box with fewer than two classes is not accepted, since one class covers all of
    its labelled pixels or it has none. With a `max_class_share` of 1 or more the first box is always accepted.

    Raises:
      UserError: `max_class_share` is one half or less.
    """
    if config.max_class_share >= 1:
        return draws.boxes[0]
    if config.max_class_share <= 0.5:
        raise UserError(
            f"augment.max_class_share is {config.max_class_share}, expected more than 0.5; use 1.0 to accept every crop"
        )
    rows, columns = (
        opencv_resize.box_weights(tables[axis], draws.scale, draws.boxes[:-1, axis], crop[axis]) for axis in (0, 1)
    )
    largest, labelled = largest_class(rows, columns, label)
    accepted = largest < config.max_class_share * labelled
    return draws.boxes[jnp.argmax(jnp.append(accepted, True))]


def largest_class(
    rows: Float32[Array, "t h"], columns: Float32[Array, "t w"], label: UInt8[Array, "h w"]
) -> tuple[Float32[Array, " t"], Float32[Array, " t"]]:
    """Count the pixels of the majority class of each box, and its labelled pixels.

    A class with more than half of the labelled pixels also has the majority in each of the eight bits of the label. So
    nine counts are enough to find it, however many classes there are. If there is no such class, the first result is
    the count of an arbitrary class: at most half of the labelled pixels.

    Args:
      rows: how often each box reads each row of the label.
      columns: the same for the columns.
      label: train ids, 255 = ignored.

    Returns:
      Count of the majority class and count of labelled pixels, per box.
    """
    bits = (label[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    planes = jnp.append(bits, jnp.ones_like(bits[..., :1]), axis=-1) * (label != IGNORE)[..., None]
    # Counts are integers below 2^24: exact in float32, but not at an accelerator's default precision.
    lines = jnp.einsum("th,hwp->twp", rows, planes.astype(jnp.float32), precision="highest")
    votes = jnp.einsum("twp,tw->tp", lines, columns, precision="highest")
    labelled = votes[:, 8]
    majority = jnp.sum((2 * votes[:, :8] > labelled[:, None]) << jnp.arange(8), axis=1)
    matches = (label == majority[:, None, None]).astype(jnp.float32)
    largest = jnp.einsum("thw,th,tw->t", matches, rows, columns, precision="highest")
    return largest, labelled
