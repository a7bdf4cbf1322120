"""Shifts compared with values computed by hand, with Pillow's JPEG and with SciPy's cosine transform."""

import colorsys
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from PIL import Image

from crossearth_jax.augment import shifts

KEY = jax.random.key(0)


def pixel(*rgb):
    return jnp.asarray(rgb, jnp.uint8).reshape(1, 1, 1, 3)


def photograph(side=120):
    """Return an image with smooth colours, edges and noise, like an aerial image; its sides are no multiples of 16."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 220, (6, 6, 3), np.uint8))
    image = np.asarray(coarse.resize((side, side - 3), Image.Resampling.BICUBIC), np.float32)
    image[20:50, 30:90] *= 0.5
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Transmissions at optical depth ln 2: 2^-(650/550)^-1.3 = 0.5724, 0.5, 2^-(450/550)^-1.3 = 0.4067.
        (shifts.haze(pixel(100, 100, 100), math.log(2)), (152.16, 164.0, 180.69)),
        (shifts.warm(pixel(100, 100, 100), 0.4), (120, 100, 60)),
        (shifts.cold(pixel(100, 100, 100), 0.4), (60, 100, 120)),
        (shifts.warm(pixel(250, 10, 0), 0.4), (255, 10, 0)),
        # Brightness 0.299 x 50 + 0.587 x 110 + 0.114 x 70 = 87.5, exactly 40 levels of green above blue.
        (shifts.dry(pixel(50, 110, 70), 1.0), (109.375, 87.5, 52.5)),
        (shifts.dry(pixel(50, 90, 70), 1.0), (72.35, 82.88, 57.73)),  # half vegetation, brightness 75.76
        (shifts.dry(pixel(110, 110, 110), 1.0), (110, 110, 110)),
        (shifts.winter(pixel(110, 110, 110), 0.3), (99, 100.1, 103.4)),
        (shifts.winter(pixel(200, 0, 0), 0.5), (0.5 * 259.8 * 5 / 6, 29.9 * 0.85, 29.9 * 0.9)),
        (shifts.saturation(pixel(200, 0, 0), 0.0), (59.8, 59.8, 59.8)),
        (shifts.saturation(pixel(200, 0, 0), 2.0), (255, 0, 0)),
        (shifts.bands(pixel(10, 20, 30), 1.0), (30, 20, 10)),
        (shifts.bands(pixel(10, 20, 30), 0.25), (15, 20, 25)),
        (shifts.gamma(pixel(0, 51, 255), 2.0), (0, 10.2, 255)),
    ],
)
def test_values_by_hand(found, expected):
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=0.02)


def test_blur_averages_areas_and_interpolates():
    row = jnp.asarray([0, 100, 200, 100], jnp.float32)[None, None, :, None] * jnp.ones((1, 2, 1, 3))
    # The means are 50 and 150, at positions 0.5 and 2.5 of the original pixels.
    np.testing.assert_allclose(shifts.blur(row, 2.0)[0, :, :, 0], np.tile([50, 75, 125, 150], (2, 1)), atol=1e-4)


@pytest.mark.parametrize("subsampling", [False, True])
@pytest.mark.parametrize("quality", [8, 25, 60, 95])
def test_jpeg_equals_pillow(quality, subsampling):
    image, buffer = photograph(), io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality, subsampling="4:2:0" if subsampling else "4:4:4")
    with Image.open(buffer) as picture:
        expected = np.asarray(picture, np.float32)
    found = np.asarray(jax.jit(lambda x: shifts.jpeg(x, quality, subsampling=subsampling))(image[None])[0])
    difference = np.abs(found - expected)
    # libjpeg uses an integer transform, so some coefficients in the middle between two steps are rounded differently.
    assert difference.mean() < (0.12 if quality <= 60 else 0.25) * np.abs(expected - image).mean()
    assert difference.mean() < 0.8 and np.mean(difference <= 2) > 0.94


def test_jpeg_quantises_the_cosine_transform_of_scipy():
    block = photograph()[:8, :8, 1].astype(np.float64)
    table = shifts.quantisation(shifts.LUMINANCE_TABLE, 30)
    np.testing.assert_array_equal(table[0, :3], [27, 18, 17])  # 16, 11 and 10 times 1.66, rounded
    frequencies = scipy.fft.dctn(block - 128, norm="ortho")
    expected = np.clip(np.rint(scipy.fft.idctn(np.rint(frequencies / table) * table, norm="ortho") + 128), 0, 255)
    grey = jnp.asarray(np.repeat(block[None, ..., None], 3, -1), jnp.float32)  # stays grey
    found = shifts.jpeg(grey, 30, subsampling=False)
    np.testing.assert_allclose(found[0], np.repeat(expected[..., None], 3, -1), atol=1)


def test_shadows_cover_their_share_with_the_light_that_is_left():
    images = jnp.full((16, 200, 150, 3), 100, jnp.uint8)
    found = np.asarray(shifts.shadow(images, 0.5, KEY))
    covered = (found[..., 1] < 99.99).mean((1, 2))
    np.testing.assert_allclose(covered, shifts.SHADOW_SHARE, atol=0.05)
    np.testing.assert_allclose(found.min((0, 1, 2)), [45, 50, 62.5], atol=1e-3)
    assert found.max() == 100
    assert not np.array_equal(found[0], found[1])  # every image has its own shadows
    np.testing.assert_allclose(shifts.shadow(images, 0.9, KEY)[..., 2], 100, atol=1e-3)  # 1.25 x 0.9 is at most 1


def test_same_key_same_shadow_at_every_strength():
    images = jnp.full((1, 64, 64, 3), 200, jnp.uint8)
    weak, strong = (np.asarray(shifts.shifted("shadow", images, k, KEY), np.int32)[..., 1] for k in (1, 5))
    assert np.array_equal(weak == 200, strong == 200) or np.mean((weak < 200) != (strong < 200)) < 0.02
    assert strong.min() == 40


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_every_shift_grows_with_its_strength_and_stays_in_range(name):
    images = jnp.asarray(np.stack([photograph(), photograph()[::-1]]))
    changed = []
    for strength in shifts.STRENGTHS:
        found = jax.jit(shifts.shifted, static_argnums=(0, 2))(name, images, strength, KEY)
        assert found.dtype == jnp.uint8 and found.shape == images.shape
        changed.append(np.abs(np.asarray(found, np.int32) - np.asarray(images, np.int32)).mean())
        values = shifts.SHIFTS[name].apply(images, shifts.SHIFTS[name].values[strength - 1], KEY)
        assert values.dtype == jnp.float32 and values.min() >= 0 and values.max() <= 255
        floats = shifts.shifted(name, images.astype(jnp.float32), strength, KEY)
        assert np.abs(np.asarray(floats, np.int32) - np.asarray(found, np.int32)).max() <= 1
    assert changed[0] > 0.5 and np.all(np.diff(changed) > 0)


def test_grey_and_dry_mean_what_their_names_say():
    image = jnp.asarray(photograph()[None])
    grey = np.asarray(shifts.shifted("grey", image, 5, KEY))
    assert np.ptp(grey.astype(int), axis=-1).max() <= 1
    straw = np.asarray(shifts.shifted("dry", pixel(60, 140, 60), 5, KEY), np.float64)[0, 0, 0] / 255
    assert 0.08 < colorsys.rgb_to_hsv(*straw)[0] < 0.13  # 30 to 45 degrees: yellow-brown
