"""The augmentations of a training batch, on the accelerator; every sample is augmented independently.

Every augmentation has a name, which is folded into the sample's random key. So if one augmentation is switched off, the
random choices of the others stay the same.
"""

from __future__ import annotations

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key, UInt8

from crossearth_jax.augment.geometric import draw_geometric, geometric
from crossearth_jax.augment.mixing import mix
from crossearth_jax.augment.photometric import draw_photometric, photometric
from crossearth_jax.config import AugmentConfig
from crossearth_jax.ops.normalization import MEAN
from crossearth_jax.runtime import parallel


class Sample(NamedTuple):
    """An image, its labels, and which pixels are inside the image (the others are padding)."""

    image: UInt8[Array, "h w 3"]
    label: UInt8[Array, "h w"]
    inside: Bool[Array, "h w"]


def named_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Derive a key for the augmentation of this name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def fill_padding(sample: Sample) -> Float32[Array, "h w 3"]:
    """Return the image with its padding in ImageNet's mean colour, which normalisation turns into zeros."""
    return jnp.where(sample.inside[..., None], sample.image.astype(jnp.float32), MEAN)


def augment_sample(
    config: AugmentConfig,
    key: Key[Array, ""],
    image: UInt8[Array, "h w 3"],
    label: UInt8[Array, "h w"],
    size: Int[Array, " 2"],
) -> tuple[Float32[Array, "s s 3"], UInt8[Array, "s s"], Bool[Array, "s s"]]:
    """Resize, crop and flip one sample, then distort its colours; see `augment`."""
    rows, columns = (jnp.arange(length) < filled for length, filled in zip(label.shape, size, strict=True))
    sample = Sample(image, label, rows[:, None] & columns)
    draws = draw_geometric(config, named_key(key, "geometric"), *label.shape)
    sample = Sample(*geometric(config, draws, *sample))
    if config.photometric:
        colours = draw_photometric(config, named_key(key, "photometric"))
        sample = sample._replace(image=photometric(colours, sample.image))
    return fill_padding(sample), sample.label, sample.inside


def augment(
    config: AugmentConfig,
    key: Key[Array, ""],
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
    sizes: Int[Array, "b 2"] | None = None,
) -> tuple[Float32[Array, "b s s 3"], UInt8[Array, "b s s"], Bool[Array, "b s s"]]:
    """Augment a batch (the paper's recipe: scale 0.5 to 2, balanced crop, flip, photometric distortion).

    The result depends on the key and on the position in the batch, but not on how the batch is sharded.

    Args:
      config: sizes and strengths.
      key: random key.
      images: RGB, padded to one static size.
      labels: train ids, 255 = ignored.
      sizes: (height, width) of each image without its padding, from the upper left corner; None: no padding.

    Returns:
      Images on the 0..255 scale with whole numbers, and padding in the mean colour (0 after `normalize`); labels, 255
      in the padding; which pixels are not padding, a rectangle per image.

    Raises:
      UserError: `config.max_class_share` is one half or less.
    """
    keys = jax.random.split(key, images.shape[0])
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.asarray(labels.shape[1:]), (len(labels), 2))
    augmented = parallel.per_example(functools.partial(augment_sample, config))(keys, images, labels, sizes)
    return augmented if config.mix is None else mix(config.mix, named_key(key, "mix"), *augmented)
