"""Random scale, class-balanced crop and flips, as one resampling of static shape.

The reference resizes the whole image, cuts a box out of it and reverses its columns. Here the three only decide
which positions of the resized image are wanted; `resampling` then computes those and no others.
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
      boxes: first row and column of the candidate crops in the resized image; the last is never refused.
      flip: whether columns are reversed.
      vertical_flip: whether rows are reversed.
    """

    scale: Int[Array, ""]
    boxes: Int[Array, "t 2"]
    flip: Bool[Array, ""]
    vertical_flip: Bool[Array, ""]


def resized_sizes(config: AugmentConfig, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) that an image gets at each of the scales."""
    shorts = [int(config.crop_size * scale + 1e-6) for scale in config.scales]
    longest = int(config.longest * config.crop_size)
    return tuple(opencv_resize.resized_size(height, width, short, longest) for short in shorts)


def draw_geometric(config: AugmentConfig, key: Key[Array, ""], height: int, width: int) -> GeometricDraws:
    """Draws scale, candidate boxes and flips for an image of the given size."""
    # All from one call: on CPU every further call of the generator adds a second to the compilation.
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
    """Resizes, crops and flips one example.

    A resized image smaller than the crop lies in its upper left corner.

    Args:
      config: sizes and shares.
      draws: the random choices.
      image: RGB.
      label: classes, 255 = unlabelled.
      inside: the rectangle of pixels that are not padding; None if there is none.

    Returns:
      the image, the label (255 outside of the image) and a mask of the pixels inside of the image, again a rectangle.

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
    # Positions outside of the image are read somewhere inside and overwritten below.
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
    """Returns the first candidate box in which no class covers too much, else the last one.

    The share is that of the labelled pixels, and the bound itself is refused. A box with fewer than two classes
    is refused too: there one class covers everything.
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
    """Counts, per box, the pixels of its majority class (0 to half of them if there is none) and the labelled ones.

    A class that covers more than half of the pixels also wins the vote on each of its eight bits. So the candidate
    is found with nine counts, however many classes there are.

    Args:
      rows: how often each row of the label is read by each box.
      columns: the same for the columns.
      label: classes, 255 = unlabelled.
    """
    bits = (label[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    planes = jnp.append(bits, jnp.ones_like(bits[..., :1]), axis=-1) * (label != IGNORE)[..., None]
    # Counts are whole numbers below 2^24: exact in float32, but not in what an accelerator multiplies by default.
    lines = jnp.einsum("th,hwp->twp", rows, planes.astype(jnp.float32), precision="highest")
    votes = jnp.einsum("twp,tw->tp", lines, columns, precision="highest")
    labelled = votes[:, 8]
    majority = jnp.sum((2 * votes[:, :8] > labelled[:, None]) << jnp.arange(8), axis=1)
    matches = (label == majority[:, None, None]).astype(jnp.float32)
    largest = jnp.einsum("thw,th,tw->t", matches, rows, columns, precision="highest")
    return largest, labelled
