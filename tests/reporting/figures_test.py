"""Pictures decoded again: colours of class and error maps, sizes, and what is left of matplotlib's SVG."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.reporting import figures
from crossearth_jax.reporting.run import Series

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


def test_running_mean_is_symmetric():
    np.testing.assert_allclose(figures.running_mean(np.array([1.0, 2, 9, 4, 5]), 1), [1, 4, 5, 6, 5])
    line = 3.0 + 2.0 * np.arange(30)
    np.testing.assert_allclose(figures.running_mean(line, 4), line, rtol=1e-12)
    np.testing.assert_allclose(figures.running_mean(line, 0), line, rtol=1e-12)


@pytest.fixture(scope="module")
def svg():
    steps = np.arange(1, 900)
    series = {"mask & <b>": Series(steps=steps, values=1.0 / steps), "dice": Series(steps=steps, values=2.0 / steps)}
    return figures.curves("Loss <terms>", series, logarithmic=True)


def test_curves_are_well_formed_and_take_the_page_s_colours(svg):
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.attrib["aria-label"] == "Loss <terms>" and "width" not in root.attrib
    texts = [text.text for text in root.iter("text")]
    assert {"Loss <terms>", "mask & <b>", "dice", "step"} <= set(texts)
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "var(--muted)" in svg
    for leftover in ("#0a0b", "#010203", "<metadata", "<style", "http", "DejaVu"):
        assert leftover not in svg, leftover


def test_curves_are_thinned(svg):
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    longest = max(len(path.attrib["d"].split("L")) for path in root.iter("path"))
    assert longest <= figures.MAX_POINTS
