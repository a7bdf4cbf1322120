"""Augmentations that mix the images of a batch, without a style network; not part of the reference.

They are the usual alternatives to Earth-Style Injection: `fourier` and `statistics` change appearance only, `cutmix`
and `grid_shuffle` change the layout together with the labels. The partner of an image is the next one of the batch,
whose order is random. Neighbours lie on one device or on two adjacent ones, so little data moves between devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Float32, Key, UInt8

from crossearth_jax.config import MixConfig
from crossearth_jax.runtime import parallel

Images = Float32[Array, "b h w 3"]
Labels = UInt8[Array, "b h w"]
Masks = Bool[Array, "b h w"]
Parts = tuple[Array, ...]  # image, labels and mask of one sample


def mix(
    config: MixConfig, key: Key[Array, ""], images: Images, labels: Labels, inside: Masks
) -> tuple[Images, Labels, Masks]:
    """Mix each image of a batch with the next one, with probability `config.probability`.

    Args:
      config: kind, probability and strength (`config_check` refuses unknown kinds).
      key: of this step.
      images: on the 0..255 scale.
      labels: classes, 255 = ignored.
      inside: which pixels are not padding.

    Returns:
      Images as whole numbers in 0..255, labels and masks, changed alike.
    """
    coin_key, draw_key = jax.random.split(key)
    chosen = jax.random.uniform(coin_key, images.shape[:1]) < config.probability
    keys = jax.random.split(draw_key, len(images))
    batch = (images, labels, inside)
    partners = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), batch)

    def one(key: Key[Array, ""], chosen: Bool[Array, ""], own: Parts, partner: Parts) -> Parts:
        mixed = _KINDS[config.kind](config, key, own, partner)
        return tuple(jnp.where(chosen, new, old) for new, old in zip(mixed, own, strict=True))

    return parallel.per_example(one)(keys, chosen, batch, partners)


def _fourier(config: MixConfig, key: Key[Array, ""], own: Parts, partner: Parts) -> Parts:
    share = config.strength * jax.random.uniform(key)
    return mix_amplitudes(own[0], partner[0], share), *own[1:]


def _statistics(config: MixConfig, key: Key[Array, ""], own: Parts, partner: Parts) -> Parts:
    share = config.strength * jax.random.uniform(key)
    return mix_statistics(own[0], partner[0], share, own[2], partner[2]), *own[1:]


def _cutmix(config: MixConfig, key: Key[Array, ""], own: Parts, partner: Parts) -> Parts:
    pasted = rectangle(key, own[1].shape, config.strength)
    return tuple(
        jnp.where(rearrange(pasted, "h w -> h w" + " 1" * (x.ndim - 2)), y, x)
        for x, y in zip(own, partner, strict=True)
    )


def _grid_shuffle(config: MixConfig, key: Key[Array, ""], own: Parts, partner: Parts) -> Parts:
    del partner
    order = jax.random.permutation(key, config.grid**2)
    return tuple(shuffle_cells(x, order, config.grid) for x in own)


_KINDS = {"fourier": _fourier, "statistics": _statistics, "cutmix": _cutmix, "grid_shuffle": _grid_shuffle}


def mix_amplitudes(
    image: Float32[Array, "h w 3"], partner: Float32[Array, "h w 3"], share: Float[Array, ""]
) -> Float32[Array, "h w 3"]:
    """Replace a share of an image's Fourier amplitudes with those of its partner and keep the phases.

    This is "amplitude mix" of Xu et al., arXiv 2105.11342, section 3.2. The result is rounded and clipped to 0..255.
    """
    own, other = (jnp.fft.rfft2(x, axes=(0, 1)) for x in (image, partner))
    amplitude = (1 - share) * jnp.abs(own) + share * jnp.abs(other)
    # The phase of a vanishing frequency is taken as 0.
    phase = jnp.where(jnp.abs(own) > 0, own / jnp.where(jnp.abs(own) > 0, jnp.abs(own), 1), 1)
    return _eight_bit(jnp.fft.irfft2(amplitude * phase, s=image.shape[:2], axes=(0, 1)))


def mix_statistics(
    image: Float32[Array, "h w 3"],
    partner: Float32[Array, "h w 3"],
    share: Float[Array, ""],
    inside: Bool[Array, "h w"],
    partner_inside: Bool[Array, "h w"],
) -> Float32[Array, "h w 3"]:
    """Move mean and standard deviation of each channel by a share towards those of the partner.

    MixStyle (Zhou et al., arXiv 2104.02008) on pixels instead of features. Padding is not counted and not changed. The
    result is rounded and clipped to 0..255.
    """
    (mean, deviation), (other_mean, other_deviation) = (
        _moments(x, mask) for x, mask in ((image, inside), (partner, partner_inside))
    )
    wanted_mean = mean + share * (other_mean - mean)
    wanted_deviation = deviation + share * (other_deviation - deviation)
    changed = (image - mean) / jnp.maximum(deviation, 1.0) * wanted_deviation + wanted_mean
    return jnp.where(inside[..., None], _eight_bit(changed), image)


def _moments(image: Float32[Array, "h w 3"], inside: Bool[Array, "h w"]) -> tuple[Array, Array]:
    weights = inside[..., None] / jnp.maximum(inside.sum(), 1)
    mean = (weights * image).sum((0, 1))
    return mean, jnp.sqrt((weights * (image - mean) ** 2).sum((0, 1)))


def rectangle(key: Key[Array, ""], shape: tuple[int, ...], largest: float) -> Bool[Array, "h w"]:
    """Draw the rectangle that CutMix pastes (Yun et al., arXiv 1905.04899).

    Its area is uniform between 0 and `largest` of the image, its sides have the image's ratio, its centre is uniform,
    and what lies outside the image is cut off.
    """
    area_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(largest * jax.random.uniform(area_key))
    centre = jax.random.uniform(centre_key, (2,))
    rows, columns = (
        jnp.abs((jnp.arange(length) + 0.5) / length - middle) <= side / 2
        for length, middle in zip(shape, centre, strict=True)
    )
    return rows[:, None] & columns


def shuffle_cells(values: Array, order: Array, grid: int) -> Array:
    """Cut an array into `grid` x `grid` cells and put cell `order[i]` in the place of cell i.

    Rows and columns that are left over at the lower and right border stay where they are.
    """
    height, width = (length // grid * grid for length in values.shape[:2])
    cells = rearrange(values[:height, :width], "(i h) (j w) ... -> (i j) h w ...", i=grid, j=grid)
    shuffled = rearrange(cells[order], "(i j) h w ... -> (i h) (j w) ...", i=grid, j=grid)
    return values.at[:height, :width].set(shuffled)


def _eight_bit(image: Float32[Array, "h w 3"]) -> Float32[Array, "h w 3"]:
    return jnp.clip(jnp.round(image), 0, 255)
