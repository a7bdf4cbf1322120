"""Sine encoding compared with numbers computed from the definition."""

import math

import numpy as np

from crossearth_jax.ops.sine_encoding import sine_encoding


def test_numbers_from_the_definition():
    encoding = sine_encoding(2, 4, 8)
    assert encoding.shape == (2, 4, 8)
    # Row 1 of 2 is at (nearly) 2 pi, column 0 of 4 at pi / 2; two frequencies, 1 and 1 / 100, sine then cosine.
    y, x = 2 * math.pi, math.pi / 2
    angles = [y, y, y / 100, y / 100, x, x, x / 100, x / 100]
    expected = [(math.sin, math.cos)[i % 2](angle) for i, angle in enumerate(angles)]
    np.testing.assert_allclose(encoding[1, 0], expected, atol=4e-6)


def test_rows_and_columns_are_independent():
    encoding = np.asarray(sine_encoding(3, 5, 8))
    np.testing.assert_array_equal(encoding[:, 0, :4], encoding[:, 4, :4])
    np.testing.assert_array_equal(encoding[0, :, 4:], encoding[2, :, 4:])
