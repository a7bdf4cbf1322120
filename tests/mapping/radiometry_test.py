"""Stretches compared with numbers worked out by hand."""

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.mapping import radiometry


def test_eight_bit_stays():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(3, 16, 16)
    np.testing.assert_array_equal(radiometry.AS_IS(values), values)


def test_fixed_range():
    stretch = radiometry.fixed(1000.0, 3000.0)
    values = np.array([[0, 1000], [1500, 2000], [3000, 65535]], np.uint16)[:, None]
    # 500 / 2000 * 255 = 63.75 and 1000 / 2000 * 255 = 127.5, which rounds to even.
    np.testing.assert_array_equal(stretch(values), [[[0, 0]], [[64, 128]], [[255, 255]]])
    assert str(stretch) == "1000..3000, 1000..3000, 1000..3000 to 0..255 (given range)"


def test_percentiles_of_each_band():
    values = np.zeros((3, 101), np.int16)
    values[0] = np.arange(101) * 10  # percentiles 2 and 98: 20 and 980
    values[1] = -np.arange(101)
    values[2] = 7
    stretch = radiometry.percentile(values)
    assert stretch.ranges == ((20, 980), (-98, -2), (7, 7))
    pixel = np.array([[[500]], [[-50]], [[9]]], np.int16)
    np.testing.assert_array_equal(stretch(pixel), [[[128]], [[128]], [[0]]])  # 127.5, 127.5; a band of one value is 0


def test_other_percentiles():
    values = np.arange(101, dtype=np.uint8).reshape(1, 101).repeat(3, 0)
    stretch = radiometry.percentile(values, (0.0, 50.0))
    assert stretch.ranges == ((0, 50),) * 3
    assert str(stretch).endswith("(percentiles 0 and 50)")
    with pytest.raises(UserError, match="percentiles are 98 and 2, expected 0 <= low < high <= 100"):
        radiometry.percentile(values, (98.0, 2.0))


def test_infinite_values_are_clipped():
    values = np.array([[[np.nan]], [[np.inf]], [[-np.inf]]], np.float32)
    np.testing.assert_array_equal(radiometry.fixed(0.0, 1.0)(values), [[[0]], [[255]], [[0]]])


def test_no_values_at_all():
    assert radiometry.percentile(np.zeros((3, 0), np.float32)).ranges == ((0, 1),) * 3


def test_large_integers_keep_their_digits():
    values = np.array([[[2_000_000_000, 2_000_000_051, 2_000_000_102]]] * 3, np.int32)  # float32 has steps of 128 here
    np.testing.assert_array_equal(radiometry.fixed(2e9, 2e9 + 102)(values), [[[0, 128, 255]]] * 3)


def test_empty_range():
    with pytest.raises(UserError, match="expected low < high"):
        radiometry.fixed(5.0, 5.0)
