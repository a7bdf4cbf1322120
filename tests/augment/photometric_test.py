"""Photometric distortion compared with golden numbers of mmsegmentation and OpenCV, and properties.

Tolerance: OpenCV truncates a float32 product. If the compiler fuses multiplications with additions, which depends on
the processor, one colour in 250 differs by one level per conversion. A later change of contrast can double this.
"""

import colorsys
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment import photometric
from crossearth_jax.config import AugmentConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/train"
CASES = json.loads((GOLDEN / "photometric.json").read_text())
IMAGES = np.load(GOLDEN / "photometric.npz")
COLOURS = np.load(GOLDEN / "hsv_table.npz")
distort = jax.jit(photometric.photometric)


def golden_draws(taken):
    """Assign the reference's draws, which are listed in their order, to our fields."""
    values = iter(value for _, _, value in taken)
    brightness = next(values) if next(values) else 0.0
    first = bool(next(values))
    contrast = next(values) if first and next(values) else 1.0
    saturate = bool(next(values))
    saturation = next(values) if saturate else 1.0
    rotate = bool(next(values))
    hue = next(values) if rotate else 0
    contrast = next(values) if not first and next(values) else contrast
    assert next(values, None) is None
    fields = (brightness, contrast, first, saturate, saturation, rotate, hue)
    return photometric.PhotometricDraws(*map(jnp.asarray, fields))


def assert_close_in_levels(actual, expected, share=0.01):
    difference = np.abs(np.asarray(actual).astype(int) - expected)
    assert difference.max() <= 2
    assert np.any(difference, axis=-1).mean() <= share


@pytest.mark.parametrize("name", CASES)
def test_every_branch_equals_the_reference(name):
    result = distort(golden_draws(CASES[name]["draws"]), IMAGES["input"][..., ::-1])
    assert_close_in_levels(result, IMAGES[name][..., ::-1])


def test_to_hsv_equals_opencv_exactly():
    hsv = jax.jit(photometric.rgb_to_hsv)(COLOURS["bgr"][:, ::-1].astype(np.int32))
    np.testing.assert_array_equal(hsv, COLOURS["hsv"])


@pytest.mark.parametrize(("hsv", "bgr"), [("hsv", "bgr_back"), ("hsv_free", "bgr_from_hsv_free")])
def test_from_hsv_equals_opencv(hsv, bgr):
    rgb = jax.jit(photometric.hsv_to_rgb)(COLOURS[hsv].astype(np.int32))
    assert_close_in_levels(rgb, COLOURS[bgr][:, ::-1], share=0.005)


def test_primary_colours_and_greys():
    rgb = jnp.asarray([[255, 0, 0], [255, 255, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255], [7, 7, 7], [0, 0, 0]])
    hsv = [[0, 255, 255], [30, 255, 255], [60, 255, 255], [120, 255, 255], [150, 255, 255], [0, 0, 7], [0, 0, 0]]
    np.testing.assert_array_equal(jax.jit(photometric.rgb_to_hsv)(rgb), hsv)
    # If float32 does not meet a sector boundary exactly, truncation can lose a level, as in OpenCV.
    np.testing.assert_allclose(jax.jit(photometric.hsv_to_rgb)(jnp.asarray(hsv)), rgb, atol=1)


def test_hue_rotation_agrees_with_colorsys():
    image = np.random.default_rng(0).integers(0, 256, (40, 1, 3)).astype(np.int32)
    rotated = np.asarray(jax.jit(photometric.rotate_hue)(image, -17))
    for before, after in zip(image[:, 0] / 255, rotated[:, 0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = np.array(colorsys.hsv_to_rgb((hue - 17 / 180) % 1, saturation, value)) * 255
        # A step of the 8-bit hue is two degrees: an error of up to 1/60 of the spread, in addition to the truncation.
        np.testing.assert_allclose(after, expected, atol=2 + 255 / 60)


def test_draws_follow_the_configuration():
    config = AugmentConfig(brightness=20.0, contrast=(0.8, 1.1), saturation=(0.7, 1.4), hue=3)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda k: photometric.draw_photometric(config, k)))(keys))
    coins = [draws.brightness != 0, draws.contrast != 1, draws.contrast_first, draws.saturate, draws.rotate]
    np.testing.assert_allclose(np.mean(coins, axis=1), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(coins), np.eye(5), atol=0.06)
    np.testing.assert_allclose(np.percentile(draws.brightness, [0, 100]), [-20, 20], atol=0.1)
    np.testing.assert_allclose(np.percentile(draws.contrast, [0, 100]), [0.8, 1.1], atol=0.01)
    np.testing.assert_allclose(np.percentile(draws.saturation, [0, 100]), [0.7, 1.4], atol=0.01)
    np.testing.assert_allclose(np.bincount(draws.hue + 3) / 4000, 1 / 6, atol=0.03)
