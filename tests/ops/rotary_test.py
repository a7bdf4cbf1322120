"""Rotary position embedding compared with a product of complex numbers."""

import jax.numpy as jnp
import numpy as np

from crossearth_jax.ops.rotary import rotate, rotation


def test_features_turn_by_the_coordinates_of_their_patch():
    height, width, features = 2, 3, 8
    x = np.random.default_rng(0).standard_normal((1, 2 + height * width + 1, 2, features))
    found = rotate(jnp.asarray(x, jnp.float32), rotation(height, width, features, 2, 1))

    pairs = x[..., :4] + 1j * x[..., 4:]
    for n in (0, 1, 8):  # the tokens without a position
        np.testing.assert_allclose(found[:, n], x[:, n], rtol=1e-6)
    rows, columns = [-0.5, 0.5], [-2 / 3, 0, 2 / 3]  # centres of the patches, from -1 to 1
    for n, (row, column) in enumerate((row, column) for row in rows for column in columns):
        angles = 2 * np.pi * np.asarray([row, row / 10, column, column / 10])  # periods 100^0 and 100^(1/2)
        expected = pairs[:, 2 + n] * np.exp(1j * angles)
        np.testing.assert_allclose(found[:, 2 + n, :, :4], expected.real, atol=1e-6)
        np.testing.assert_allclose(found[:, 2 + n, :, 4:], expected.imag, atol=1e-6)


def test_type_is_kept():
    assert rotate(jnp.ones((1, 2, 1, 4), jnp.bfloat16), rotation(1, 1, 4, 1)).dtype == jnp.bfloat16
