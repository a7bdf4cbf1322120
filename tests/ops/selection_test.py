"""Selection of the smallest values compared with a sort."""

import jax
import jax.numpy as jnp
import numpy as np

from crossearth_jax.ops.selection import smallest

select = jax.jit(smallest, static_argnums=1)


def test_marks_the_smallest_of_each_row():
    values = np.abs(np.random.default_rng(0).standard_normal((2, 3, 500))).astype(np.float32)
    values[0, 0, :3] = [0.0, np.inf, 1e-40]
    for count in (1, 137, 500):
        expected = np.argsort(np.argsort(values, axis=-1), axis=-1) < count
        np.testing.assert_array_equal(select(values, count), expected)


def test_ties_at_the_limit_share_what_is_left():
    values = jnp.array([[2.0, 1.0, 2.0, 3.0, 2.0, 0.0], [5.0] * 6])
    third = 1 / 3
    expected = [[third, 1, third, 0, third, 1], [0.5] * 6]
    np.testing.assert_allclose(select(values, 3), expected, rtol=1e-6)


def test_gradient_is_zero():
    gradient = jax.grad(lambda v: (smallest(v, 1) * jnp.array([3.0, 5.0])).sum())(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [0, 0])
