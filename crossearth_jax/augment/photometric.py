"""Photometric distortion of 8-bit images: brightness, contrast, saturation and hue, as in mmsegmentation.

Every change truncates its result to whole numbers 0..255, since the reference stores 8-bit images in between. The
changes of saturation and hue each convert to HSV and back. This conversion alone changes most colours by a level or
more, so it is applied only to images whose saturation or hue is changed. Colours are RGB; the two conversions reproduce
OpenCV's, whose vectorised code truncates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, Shaped, UInt8

from crossearth_jax.config import AugmentConfig

HUES = 180  # OpenCV's 8-bit hue counts steps of two degrees
_FIXED = 12  # fractional bits in OpenCV's integer division tables


class PhotometricDraws(NamedTuple):
    """The random choices for one image.

    Attributes:
      brightness: added to every value; 0 changes nothing.
      contrast: factor on every value; 1 changes nothing.
      contrast_first: whether contrast is changed before saturation and hue, or after them.
      saturate: whether the saturation is changed, by the factor `saturation`.
      rotate: whether the hue is changed, by `hue` steps of two degrees.
    """

    brightness: Float[Array, ""]
    contrast: Float[Array, ""]
    contrast_first: Bool[Array, ""]
    saturate: Bool[Array, ""]
    saturation: Float[Array, ""]
    rotate: Bool[Array, ""]
    hue: Int[Array, ""]


def draw_photometric(config: AugmentConfig, key: Key[Array, ""]) -> PhotometricDraws:
    """Draw which of the four changes are made (each with probability one half), by how much, and the order."""
    coins, (brightness, contrast, _, saturation, hue) = jax.random.uniform(key, (2, 5))
    coins = coins < 0.5
    return PhotometricDraws(
        brightness=jnp.where(coins[0], _between(-config.brightness, config.brightness, brightness), 0.0),
        contrast=jnp.where(coins[1], _between(*config.contrast, contrast), 1.0),
        contrast_first=coins[2],
        saturate=coins[3],
        saturation=_between(*config.saturation, saturation),
        rotate=coins[4],
        hue=jnp.floor(_between(-1.0, 1.0, hue) * config.hue).astype(jnp.int32),
    )


def _between(low: float, high: float, uniform: Float[Array, ""]) -> Float[Array, ""]:
    return low + (high - low) * uniform


def photometric(draws: PhotometricDraws, image: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w 3"]:
    """Apply the drawn changes: brightness, contrast (here or last), saturation, hue."""
    values = _truncate(image + draws.brightness)
    values = jnp.where(draws.contrast_first, _truncate(values * draws.contrast), values)
    values = jnp.where(draws.saturate, scale_saturation(values, draws.saturation), values)
    values = jnp.where(draws.rotate, rotate_hue(values, draws.hue), values)
    values = jnp.where(draws.contrast_first, values, _truncate(values * draws.contrast))
    return values.astype(jnp.uint8)


def scale_saturation(image: Int32[Array, "h w 3"], factor: Float[Array, ""]) -> Int32[Array, "h w 3"]:
    """Multiply the saturation of an RGB image with values 0..255."""
    hue, saturation, value = jnp.moveaxis(rgb_to_hsv(image), -1, 0)
    return hsv_to_rgb(jnp.stack([hue, _truncate(saturation * factor), value], axis=-1))


def rotate_hue(image: Int32[Array, "h w 3"], steps: Int[Array, ""]) -> Int32[Array, "h w 3"]:
    """Add steps of two degrees to the hue of an RGB image with values 0..255."""
    hue, saturation, value = jnp.moveaxis(rgb_to_hsv(image), -1, 0)
    return hsv_to_rgb(jnp.stack([_wrap(hue + steps, HUES), saturation, value], axis=-1))


def _wrap(values: Shaped[Array, "*s"], period: int) -> Shaped[Array, "*s"]:
    """Wrap values in [-period, 2 period) into [0, period); a general modulo takes ten times as long."""
    return jnp.where(values < 0, values + period, jnp.where(values >= period, values - period, values))


def _truncate(values: Float[Array, "*s"]) -> Int32[Array, "*s"]:
    return jnp.clip(values, 0, 255).astype(jnp.int32)


def rgb_to_hsv(image: Int32[Array, "*s 3"]) -> Int32[Array, "*s 3"]:
    """Convert RGB 0..255 to hue 0..179, saturation and value 0..255, bit for bit as OpenCV."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = jnp.max(image, axis=-1)
    spread = value - jnp.min(image, axis=-1)
    saturation = _divide(spread, 255, value)
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _divide(sixths, HUES // 6, spread)
    return jnp.stack([_wrap(hue, HUES), saturation, value], axis=-1)


def _divide(numerator: Int32[Array, "*s"], scale: int, denominator: Int32[Array, "*s"]) -> Int32[Array, "*s"]:
    """Return numerator * scale / denominator, by a reciprocal rounded to 12 fractional bits; 0 if denominator is 0."""
    # Every quotient is at least 4 units in the last place (float32) away from a rounding tie, so an accelerator's
    # inexact division gives the same result.
    reciprocal = jnp.round((scale << _FIXED) / jnp.maximum(denominator, 1).astype(jnp.float32))
    product = numerator * jnp.where(denominator == 0, 0, reciprocal).astype(jnp.int32)
    return (product + (1 << (_FIXED - 1))) >> _FIXED


def hsv_to_rgb(image: Int32[Array, "*s 3"]) -> Int32[Array, "*s 3"]:
    """Convert hue 0..179, saturation and value 0..255 to RGB 0..255, in float32 and truncated as in OpenCV.

    Where the compiler fuses multiplications with additions, one colour in 250 differs by one level.
    """
    hue, saturation, value = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
    saturation, value = saturation * jnp.float32(1 / 255), value * jnp.float32(1 / 255)
    sixths = hue * jnp.float32(6 / HUES)
    sector = jnp.floor(sixths)
    fraction = sixths - sector
    low = value * (1 - saturation)
    falling = value * (1 - saturation * fraction)
    rising = value * (1 - saturation * (1 - fraction))

    def channel(shift: int) -> Float32[Array, "*s"]:
        # All channels are the same function of the hue, shifted by two of the six sectors.
        place = _wrap(sector + shift, 6)
        outer = jnp.where(place == 1, falling, jnp.where(place == 4, rising, low))
        return jnp.where((place == 0) | (place == 5), value, outer)

    rgb = jnp.stack([channel(0), channel(4), channel(2)], axis=-1)
    return (rgb * 255).astype(jnp.int32)
