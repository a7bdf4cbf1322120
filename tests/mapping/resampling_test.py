"""Resampling compared with plain code for means over areas and for interpolation."""

import numpy as np
import pytest

from crossearth_jax.mapping.resampling import Axis, resample


def area_means(values, valid, scale, count):
    """Means over (count, count) squares of `scale` pixels, on a grid seven times finer."""
    fine, good = (np.kron(np.where(valid, values, 0) if i == 0 else valid, np.ones((7, 7))) for i in (0, 1))
    side = round(7 * scale)
    parts = [
        [np.s_[i * side : (i + 1) * side, j * side : (j + 1) * side] for j in range(count[1])] for i in range(count[0])
    ]
    total = np.array([[fine[part].sum() for part in row] for row in parts])
    weight = np.array([[good[part].sum() for part in row] for row in parts])
    inside = np.array([[good[part].size for part in row] for row in parts])
    return total / np.maximum(weight, 1), weight / inside


@pytest.mark.parametrize("scale", [2.0, 16 / 7, 3.0, 24 / 7])
def test_coarser_pixels_are_means_of_the_valid_area(scale):
    values, valid = np.random.default_rng(0).random((20, 26)), np.random.default_rng(1).random((20, 26)) < 0.6
    count = round(20 / scale), round(26 / scale)
    expected, share = area_means(values, valid, scale, count)
    broken = np.where(valid, values, np.nan)[None]  # values of invalid pixels must not matter
    rows, columns = Axis(20, scale), Axis(26, scale)
    found, good = resample(broken, valid, (rows, 0, count[0]), (columns, 0, count[1]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    near = np.abs(share - 0.5) < 1e-9
    np.testing.assert_array_equal(good | near, (share > 0.5) | near)
    assert good[near].all()


def test_a_part_is_the_part_of_the_whole():
    values, valid = np.random.default_rng(0).random((2, 50, 60)), np.random.default_rng(1).random((50, 60)) < 0.8
    for scale in (0.37, 1.0, 2.71):
        rows, columns = Axis(50, scale), Axis(60, scale)
        size = round(50 / scale), round(60 / scale)
        whole, good = resample(values, valid, (rows, 0, size[0]), (columns, 0, size[1]))
        top, bottom, left, right = 3, size[0] - 2, 5, size[1]
        (first, last), (begin, end) = rows.support(top, bottom), columns.support(left, right)
        part = values[:, first:last, begin:end], valid[first:last, begin:end]
        found, part_good = resample(*part, (rows, top, bottom), (columns, left, right))
        np.testing.assert_allclose(found, whole[:, top:bottom, left:right], rtol=1e-12)
        np.testing.assert_array_equal(part_good, good[top:bottom, left:right])


def test_finer_pixels_are_interpolated_between_valid_ones():
    values = np.array([[[0.0, 8.0, np.nan, 8.0]]])
    valid = np.array([[True, True, False, True]])
    found, good = resample(values, valid, (Axis(1, 1.0), 0, 1), (Axis(4, 0.5), 0, 8))
    # New centres lie a quarter of a pixel to each side; at a border or a hole only one value is available.
    np.testing.assert_array_equal(good, [[True, True, True, True, False, False, True, True]])
    np.testing.assert_array_equal(found[0, :, good[0]].T, [[0, 2, 6, 8, 8, 8]])


def test_axes_of_different_resolution():
    values = np.arange(24.0).reshape(1, 4, 6)
    found, good = resample(values, np.ones((4, 6), bool), (Axis(4, 2.0), 0, 2), (Axis(6, 1.0), 0, 6))
    np.testing.assert_array_equal(found[0], [np.arange(6) + 3, np.arange(6) + 15])
    assert good.all()


def test_a_pixel_larger_than_everything():
    found, good = resample(np.full((1, 3, 2), 5.0), np.ones((3, 2), bool), (Axis(3, 90.0), 0, 1), (Axis(2, 90.0), 0, 1))
    assert found.item() == 5 and good.item()


def test_integers_become_real_numbers():
    values = np.array([[[0, 255], [255, 255]]], np.uint8)
    found, _ = resample(values, np.ones((2, 2), bool), (Axis(2, 2.0), 0, 1), (Axis(2, 2.0), 0, 1))
    assert found.dtype == np.float32 and found.item() == 191.25
