"""Appearance shifts: simulated changes of haze, light, season, sensor, compression, resolution and shadow.

Each shift is a pure function of RGB images (8-bit or float on the 0..255 scale) and one number with a unit. `SHIFTS`
gives each shift a name and a number for each of five strengths. Results are float32 in [0, 255]. Since no pixel moves,
the labels stay valid. So the robustness of a model can be measured on shifted images of a domain without further labels
(`inference.robustness`).

Formulas are applied to the stored, gamma-encoded values. For formulas of linear light this is an approximation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Float32, Key, Shaped, UInt8

from crossearth_jax.ops.resize import resize_area, resize_bilinear

STRENGTHS = (1, 2, 3, 4, 5)

Images = Shaped[Array, "b h w 3"]  # uint8, or float in [0, 255]
Shifted = Float32[Array, "b h w 3"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601 weights of red, green and blue
AIRLIGHT = np.array([222.0, 228.0, 236.0], np.float32)  # colour of haze of infinite depth
WAVELENGTHS = np.array([650.0, 550.0, 450.0], np.float32)  # nm, of red, green and blue
ANGSTROM_EXPONENT = 1.3  # of continental aerosol: scattering is proportional to wavelength^-1.3
STRAW = np.array([1.25, 1.0, 0.6], np.float32)  # dry vegetation, relative to its brightness
GREENNESS = 40.0  # levels of green above red and blue at which a pixel is fully vegetation
SKYLIGHT = np.array([0.9, 1.0, 1.25], np.float32)  # light in shadows, which comes from the blue sky; relative to green
SHADOW_GRID = 5  # random numbers along each side of an image; sets the size of shadows
SHADOW_SHARE = 0.4  # share of the image that shadows cover
SHADOW_EDGE = 0.3  # width of the soft edge of a shadow, in standard deviations of the random field

# Quantisation tables of Annex K of the JPEG standard, for quality 50.
LUMINANCE_TABLE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMINANCE_TABLE = np.array([
    [17, 18, 24, 47, 99, 99, 99, 99], [18, 21, 26, 66, 99, 99, 99, 99], [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99], *[[99] * 8] * 4,
])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shift:
    """A kind of shift and its five strengths."""

    parameter: str  # meaning and unit of the numbers
    values: tuple[float, float, float, float, float]  # for strengths 1 to 5
    apply: Callable[[Images, float, Key[Array, ""]], Shifted]  # arguments: images, number, random key


def haze(images: Images, depth: float) -> Shifted:
    """Add haze by the scattering model I = J t + A (1 - t), with A = `AIRLIGHT`.

    Args:
      images: the images J without haze.
      depth: optical depth at 550 nm; the transmission t of a band at wavelength w is exp(-depth (w / 550 nm)^-1.3).
    """
    transmission = np.exp(-depth * (WAVELENGTHS / 550) ** -ANGSTROM_EXPONENT)
    return images.astype(jnp.float32) * transmission + AIRLIGHT * (1 - transmission)


def warm(images: Images, change: float) -> Shifted:
    """Apply the warm light of a low sun: multiply red by 1 + change / 2 and blue by 1 - change."""
    return _gains(images, (1 + change / 2, 1.0, 1 - change))


def cold(images: Images, change: float) -> Shifted:
    """Apply the cold light of the sky: multiply red by 1 - change and blue by 1 + change / 2."""
    return _gains(images, (1 - change, 1.0, 1 + change / 2))


def _gains(images: Images, gains: tuple[float, float, float]) -> Shifted:
    return jnp.clip(images.astype(jnp.float32) * np.array(gains, np.float32), 0, 255)


def luma(images: Images) -> Float32[Array, "b h w 1"]:
    """Return the brightness of pixels, 0..255."""
    # A sum, because a TPU would round the inputs of a matrix product to bfloat16.
    return (images.astype(jnp.float32) * LUMA).sum(-1, keepdims=True)


def dry(images: Images, share: float) -> Shifted:
    """Dry the vegetation: move the colour of green pixels towards straw by a share.

    Straw is `STRAW` times the pixel's brightness: 1.25 in red, 1 in green, 0.6 in blue. The share is multiplied by the
    degree of vegetation, which grows from 0 (green not above red and blue) to 1 (40 levels above both).
    """
    values = images.astype(jnp.float32)
    green = values[..., 1:2] - jnp.maximum(values[..., :1], values[..., 2:])
    moved = share * jnp.clip(green / GREENNESS, 0, 1)
    return jnp.clip(values + moved * (luma(values) * STRAW - values), 0, 255)


def winter(images: Images, share: float) -> Shifted:
    """Simulate winter (low sun, no leaves): reduce saturation and brightness.

    The saturation falls by the share, the brightness by 1/3 of the share in red, 0.3 of it in green and 0.2 in blue.
    """
    dimmed = saturation(images, 1 - share) * (1 - share * np.array([1 / 3, 0.3, 0.2], np.float32))
    return jnp.clip(dimmed, 0, 255)


def saturation(images: Images, factor: float) -> Shifted:
    """Multiply the difference between each colour and grey of the same brightness; 0 gives a grey image."""
    grey = luma(images)
    return jnp.clip(grey + factor * (images.astype(jnp.float32) - grey), 0, 255)


def bands(images: Images, share: float) -> Shifted:
    """Mix red and blue: each takes this share from the other; 1 swaps them, as a wrong band order does."""
    values = images.astype(jnp.float32)
    return values + share * (values[..., ::-1] - values)


def gamma(images: Images, exponent: float) -> Shifted:
    """Change the sensor's response curve to 255 (x / 255)^exponent: above 1 darkens the image, below 1 brightens it."""
    return 255 * (images.astype(jnp.float32) / 255) ** exponent


def blur(images: Images, factor: float) -> Shifted:
    """Simulate a ground resolution `factor` times coarser: average areas, then enlarge bilinearly to the old size."""
    height, width = images.shape[1:3]
    small = resize_area(images.astype(jnp.float32), (max(1, round(height / factor)), max(1, round(width / factor))))
    return resize_bilinear(small, (height, width))


def shadow(images: Images, light: float, key: Key[Array, ""]) -> Shifted:
    """Add soft cloud shadows that cover 40 % of each image.

    Shadows are where a smooth random field (normal numbers on a grid of 5 x 5, interpolated bilinearly) is high. Their
    edges are soft: the shadow deepens while the field rises by 0.3 standard deviations.

    Args:
      images: without shadows.
      light: share of the light that remains in the middle of a shadow, in green. It is 0.9 times this in red and 1.25
        times in blue (at most 1), since skylight is bluer.
      key: random key of the fields.
    """
    height, width = images.shape[1:3]
    fields = jax.random.normal(key, (len(images), SHADOW_GRID, SHADOW_GRID, 1))
    coarse = resize_bilinear(fields, (64, 64))
    begin = jnp.quantile(coarse, 1 - SHADOW_SHARE, axis=(1, 2), keepdims=True)
    deviation = coarse.std(axis=(1, 2), keepdims=True)
    depth = jnp.clip((resize_bilinear(fields, (height, width)) - begin) / (SHADOW_EDGE * deviation), 0, 1)
    left = np.minimum(light * SKYLIGHT, 1)
    return images.astype(jnp.float32) * (1 - depth * (1 - left))


def jpeg(images: Images, quality: int, *, subsampling: bool = True) -> Shifted:
    """Simulate compression to baseline JPEG and decompression; results are whole numbers.

    The cosine transforms of blocks of 8 x 8 pixels are quantised by the tables of the standard, scaled to the quality
    as in libjpeg.

    Args:
      images: RGB.
      quality: 1 to 100.
      subsampling: whether to halve the resolution of the two chroma channels (4:2:0), as most programs do.
    """
    values = jnp.round(images.astype(jnp.float32))
    height, width = values.shape[1:3]
    unit = 16 if subsampling else 8
    padded = jnp.pad(values, ((0, 0), (0, -height % unit), (0, -width % unit), (0, 0)), mode="edge")
    red, green, blue = jnp.moveaxis(padded, -1, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    differences = jnp.stack([(blue - grey) / 1.772, (red - grey) / 1.402], axis=-1) + 128
    differences = jnp.clip(jnp.round(differences), 0, 255)
    if subsampling:
        differences = jnp.round(resize_area(differences, (padded.shape[1] // 2, padded.shape[2] // 2)))
    differences = _through_blocks(differences, quantisation(CHROMINANCE_TABLE, quality))
    if subsampling:
        differences = jnp.round(resize_bilinear(differences, padded.shape[1:3]))
    brightness = _through_blocks(jnp.round(grey)[..., None], quantisation(LUMINANCE_TABLE, quality))[..., 0]
    blueness, redness = jnp.moveaxis(differences - 128, -1, 0)
    decoded = [
        brightness + 1.402 * redness,
        brightness - 0.344136 * blueness - 0.714136 * redness,
        brightness + 1.772 * blueness,
    ]
    return jnp.clip(jnp.round(jnp.stack(decoded, axis=-1)), 0, 255)[:, :height, :width]


def quantisation(table: np.ndarray, quality: int) -> Float[np.ndarray, "8 8"]:
    """Scale a quantisation table of quality 50 to another quality, in libjpeg's integer arithmetic."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * scale + 50) // 100, 1, 255).astype(np.float32)


def _through_blocks(channels: Float32[Array, "b h w c"], table: np.ndarray) -> Float32[Array, "b h w c"]:
    """Round the cosine transforms of the 8 x 8 blocks of channels 0..255 to multiples of the table."""
    # Row u is the cosine of frequency u. The matrix is orthonormal, which for 8 x 8 is the scale of the JPEG standard.
    places = np.arange(8)
    matrix = np.cos(np.pi * (2 * places + 1) * places[:, None] / 16) / 2
    matrix[0] /= np.sqrt(2)
    matrix = matrix.astype(np.float32)
    blocks = rearrange(channels, "b (y p) (x q) c -> b y x c p q", p=8, q=8) - 128
    frequencies = jnp.einsum("up,...pq,vq->...uv", matrix, blocks, matrix, precision="highest")
    steps = frequencies / table
    # Halves are rounded away from zero, as in libjpeg. They are frequent: many coefficients are integers over 8.
    rounded = jnp.sign(steps) * jnp.floor(jnp.abs(steps) + 0.5) * table
    decoded = jnp.einsum("up,...uv,vq->...pq", matrix, rounded, matrix, precision="highest") + 128
    decoded = jnp.clip(jnp.round(decoded), 0, 255)
    return rearrange(decoded, "b y x c p q -> b (y p) (x q) c")


def _fixed(function: Callable[[Images, float], Shifted]) -> Callable[[Images, float, Key[Array, ""]], Shifted]:
    """Give a shift without random choices the signature of `Shift.apply`."""
    return lambda images, value, _: function(images, value)


SHIFTS: Mapping[str, Shift] = {
    "haze": Shift("optical depth at 550 nm", (0.15, 0.3, 0.6, 0.9, 1.4), _fixed(haze)),
    "warm": Shift("blue lost, share", (0.1, 0.2, 0.3, 0.4, 0.5), _fixed(warm)),
    "cold": Shift("red lost, share", (0.1, 0.2, 0.3, 0.4, 0.5), _fixed(cold)),
    "dry": Shift("share of vegetation's colour replaced by straw", (0.2, 0.4, 0.6, 0.8, 1.0), _fixed(dry)),
    "winter": Shift("saturation lost, share", (0.15, 0.3, 0.45, 0.6, 0.75), _fixed(winter)),
    "bands": Shift("share of red and blue exchanged", (0.2, 0.4, 0.6, 0.8, 1.0), _fixed(bands)),
    "dark": Shift("exponent of the response", (1.2, 1.5, 1.8, 2.2, 2.6), _fixed(gamma)),
    "bright": Shift("exponent of the response", (0.85, 0.7, 0.6, 0.5, 0.4), _fixed(gamma)),
    "grey": Shift("saturation left, share", (0.8, 0.6, 0.4, 0.2, 0.0), _fixed(saturation)),
    "jpeg": Shift(
        "quality, colour at half resolution",
        (60.0, 40.0, 25.0, 15.0, 8.0),
        lambda images, quality, _: jpeg(images, int(quality)),
    ),
    "blur": Shift("ground pixel size, times", (1.5, 2.0, 3.0, 4.0, 6.0), _fixed(blur)),
    "shadow": Shift("light left in shadows, share", (0.8, 0.65, 0.5, 0.35, 0.2), shadow),
}


def shifted(name: str, images: Images, strength: int, key: Key[Array, ""]) -> UInt8[Array, "b h w 3"]:
    """Apply a shift of `SHIFTS` at a strength from 1 to 5, rounded to 8 bits; `key` is for its random choices."""
    shift = SHIFTS[name]
    return jnp.round(shift.apply(images, shift.values[strength - 1], key)).astype(jnp.uint8)
