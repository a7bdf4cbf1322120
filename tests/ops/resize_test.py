"""Resizing compared with slow formulas from the definition, and with borders computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.ops import resize


def keys_cubic(x, a=-0.75):
    """Return the cubic convolution kernel of Keys' paper."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_resize(row, size, scale, weight):
    """Resize one row of numbers, sample by sample."""
    out = []
    for i in range(size):
        source = (i + 0.5) / scale - 0.5
        taps = range(int(np.floor(source)) - 1, int(np.floor(source)) + 3)
        out.append(sum(weight(source - k) * row[min(max(k, 0), len(row) - 1)] for k in taps))
    return np.array(out)


@pytest.mark.parametrize(("size", "new_size"), [(5, 13), (13, 5), (4, 4), (1, 3), (32, 64)])
def test_bilinear_equals_the_slow_formula(size, new_size):
    row = np.random.default_rng(0).standard_normal(size)
    expected = slow_resize(row, new_size, new_size / size, lambda x: max(0.0, 1 - abs(x)))
    np.testing.assert_allclose(resize.interpolation_matrix(size, new_size) @ row, expected, atol=1e-6)


@pytest.mark.parametrize(("side", "new_size"), [(4, 6), (4, 3), (32, 37)])
def test_bicubic_with_a_scale_equals_the_slow_formula(side, new_size):
    row = np.random.default_rng(1).standard_normal(side)
    scale = (new_size + 0.1) / side
    matrix = resize.interpolation_matrix(side, new_size, scale=scale, kernel=resize.cubic_kernel)
    np.testing.assert_allclose(matrix @ row, slow_resize(row, new_size, scale, keys_cubic), atol=1e-6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


def test_both_axes_with_and_without_channels():
    images = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 4, 5)), jnp.float32)
    rows, columns = resize.interpolation_matrix(3, 7), resize.interpolation_matrix(4, 2)
    expected = np.einsum("ph,qw,bhwc->bpqc", rows, columns, images)
    np.testing.assert_allclose(resize.resize_bilinear(images, (7, 2)), expected, atol=1e-6)
    resized = resize.resize_bilinear(jnp.moveaxis(images, -1, 1), (7, 2), axes=(-2, -1))
    np.testing.assert_allclose(resized, np.moveaxis(expected, -1, 1), atol=1e-6)


def test_half_of_an_odd_size_drops_the_last_row():
    column = jnp.array([1.0, 2.0, 30.0]).reshape(1, 3, 1, 1)
    halved = resize.scale_bilinear(jnp.tile(column, (1, 1, 4, 1)), 0.5)
    np.testing.assert_allclose(halved, jnp.full((1, 1, 2, 1), 1.5), atol=1e-6)


def test_doubling_by_hand():
    np.testing.assert_allclose(resize.interpolation_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_sum_of_enlarged_maps():
    random = np.random.default_rng(3)
    maps = [jnp.asarray(random.standard_normal((2, h, w, 3)), jnp.float32) for h, w in ((2, 3), (5, 4), (8, 6))]
    expected = sum(resize.resize_bilinear(x, (8, 6)) for x in maps)
    np.testing.assert_allclose(resize.sum_enlarged(maps, (8, 6)), expected, rtol=1e-5, atol=1e-5)


def test_low_precision_is_kept():
    assert resize.scale_bilinear(jnp.ones((1, 2, 2, 1), jnp.bfloat16), 2.0).dtype == jnp.bfloat16


@pytest.mark.parametrize(("size", "new_size"), [(6, 3), (5, 3), (7, 4), (4, 4), (3, 5)])
def test_area_averages_equal_parts(size, new_size):
    row = np.random.default_rng(2).standard_normal(size)
    # Every pixel is repeated so often that each part is a whole number of repetitions.
    expected = np.repeat(row, new_size).reshape(new_size, size).mean(1)
    np.testing.assert_allclose(resize.area_matrix(size, new_size) @ row, expected, atol=1e-6)


def test_area_resize_keeps_the_mean_and_leaves_channels_apart():
    image = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(1, 2, 4, 3)
    found = resize.resize_area(image, (1, 2))
    np.testing.assert_allclose(found, [[[[7.5, 8.5, 9.5], [13.5, 14.5, 15.5]]]])
