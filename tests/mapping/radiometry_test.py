"""Stretches against numbers worked out by hand."""

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


def test_percentiles_of_valid_values():
    values = np.zeros((3, 1, 101), np.int16)
    values[0, 0] = np.arange(101) * 10  # percentiles 2 and 98: 20 and 980
    values[1, 0] = -np.arange(101)
    values[2, 0] = 7
    valid = np.ones(values.shape, bool)
    valid[1, 0, 51:] = False  # leaves 0..-50: -49 and -1
    stretch = radiometry.percentile(values, valid)
    assert stretch.ranges == ((20, 980), (-49, -1), (7, 7))
    pixel = np.array([[[500]], [[-25]], [[9]]], np.int16)
    np.testing.assert_array_equal(stretch(pixel), [[[128]], [[128]], [[0]]])  # 127.5, 127.5; a band of one value is 0


def test_other_percentiles():
    values = np.arange(101, dtype=np.uint8).reshape(1, 1, 101).repeat(3, 0)
    stretch = radiometry.percentile(values, np.ones(values.shape, bool), (0.0, 50.0))
    assert stretch.ranges == ((0, 50),) * 3
    assert str(stretch).endswith("(percentiles 0 and 50)")
    with pytest.raises(UserError, match="percentiles are 98 and 2, expected 0 <= low < high <= 100"):
        radiometry.percentile(values, np.ones(values.shape, bool), (98.0, 2.0))


def test_missing_and_infinite_values():
    values = np.array([[[np.nan]], [[np.inf]], [[-np.inf]]], np.float32)
    np.testing.assert_array_equal(radiometry.fixed(0.0, 1.0)(values), [[[0]], [[255]], [[0]]])
    nothing = radiometry.percentile(values, np.isfinite(values))
    assert nothing.ranges == ((0, 1),) * 3


def test_empty_range():
    with pytest.raises(UserError, match="expected low < high"):
        radiometry.fixed(5.0, 5.0)
