"""Probabilities worked out by hand, from NumPy and from JAX arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.ops.probabilities import FLOOR, best_probabilities, log_ratios, probabilities

SCORES = np.array([[[1, 2, 1], [0, 0, 5], [0, 0, 0]]], np.float32)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_shares_and_temperature(kind):
    scores = kind(SCORES)
    expected = [[0.25, 0.5, 0.25], [0, 0, 1], [1 / 3] * 3]
    found = np.moveaxis(np.asarray(probabilities(scores)), 0, -1)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    # Square roots of 1, 2, 1; the ratio of the zeros is `FLOOR`.
    half = 1 / (1 + 2 / np.sqrt(2))
    best = np.asarray(best_probabilities(scores, (1.0, 2.0)))
    np.testing.assert_allclose(best[:, 0], [[0.5, 1, 1 / 3], [half, 1 / (1 + 2 * np.sqrt(FLOOR)), 1 / 3]], rtol=1e-6)
    assert type(best_probabilities(scores, ())) is type(scores) and best_probabilities(scores, ()).shape == (0, 1, 3)


def test_a_temperature_keeps_the_order_of_the_classes():
    scores = np.random.default_rng(0).random((50, 7)).astype(np.float32) * 40
    for temperature in (0.2, 1.0, 7.0):
        found = probabilities(scores, temperature)
        np.testing.assert_array_equal(found.argmax(0), scores.argmax(-1))
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
        np.testing.assert_allclose(found.max(0), best_probabilities(scores, (temperature,))[0], rtol=1e-5)


def test_log_ratios():
    found = log_ratios(np.array([3.0, 1.5, 0.0], np.float32))
    np.testing.assert_allclose(found, [0, np.log(0.5), np.log(FLOOR)], rtol=1e-6)


def test_subnormal_scores_count_as_zero():
    scores = np.array([[1e-40, 3e-39, 0.0]], np.float32)
    np.testing.assert_allclose(probabilities(scores)[:, 0], [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(probabilities(jnp.asarray(scores))[:, 0], [1 / 3] * 3, rtol=1e-6)
