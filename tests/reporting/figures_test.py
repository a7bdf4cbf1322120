"""Decoded pictures: colours of class maps and error maps, and sizes."""

import base64
import io

import numpy as np
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting import figures

PALETTE = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)


def decode(uri, mode):
    head, data = uri.split(",", 1)
    assert head.startswith("data:image/") and head.endswith(";base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert(mode))


def test_class_map_has_palette_colours_and_transparent_ignored_pixels():
    labels = np.array([[0, 1], [IGNORE, 1]], np.uint8)
    pixels = decode(figures.class_map(labels, PALETTE), "RGBA")
    np.testing.assert_array_equal(pixels[labels < 2, :3], PALETTE[[0, 1, 1]])
    np.testing.assert_array_equal(pixels[..., 3], [[255, 255], [0, 255]])


def test_error_map_marks_exactly_the_wrong_pixels():
    labels = np.array([[0, 1, IGNORE], [1, 1, 0]], np.uint8)
    predictions = np.array([[0, 0, 1], [1, 0, 0]], np.uint8)
    image = np.full((2, 3, 3), 100, np.uint8)
    pixels = decode(figures.error_map(image, labels, predictions), "RGBA").astype(int)
    reddish = pixels[..., 0] - pixels[..., 1] > 50
    np.testing.assert_array_equal(reddish & (pixels[..., 3] > 0), [[False, True, False], [False, True, False]])
    np.testing.assert_array_equal(pixels[0, 0, :3], [180, 180, 180])  # 140 + 0.4 x 100
    np.testing.assert_array_equal(pixels[..., 3] == 0, labels == IGNORE)


def test_small_photographs_are_exact_and_large_ones_shrink():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(decode(figures.photograph(small), "RGB"), small)
    large = np.broadcast_to(np.uint8([200, 120, 40]), (600, 1200, 3)).copy()
    shrunk = decode(figures.photograph(large), "RGB")
    assert shrunk.shape == (192, 384, 3)
    np.testing.assert_allclose(shrunk.reshape(-1, 3).mean(0), [200, 120, 40], atol=2)  # JPEG


def test_large_label_maps_keep_every_third_pixel():
    labels = np.arange(1024, dtype=np.int64)[:, None] % 2 + np.zeros((1, 900), np.int64)
    pixels = decode(figures.class_map(labels.astype(np.uint8), PALETTE), "RGB")
    np.testing.assert_array_equal(pixels, PALETTE[labels[::3, ::3]])
