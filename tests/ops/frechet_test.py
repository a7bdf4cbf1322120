"""The Fréchet distance compared with closed forms and with SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from crossearth_jax.ops.frechet import frechet_distance

RNG = np.random.default_rng(0)


def covariance(size, samples):
    factor = RNG.normal(size=(size, samples))
    return factor @ factor.T / samples


def test_one_dimension():
    # (mean difference)^2 + (difference of deviations)^2
    distance = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[25.0]]))
    assert distance == pytest.approx(9 + 9)


def test_equal_covariances_leave_the_means():
    shared, shift = covariance(6, 20), RNG.normal(size=6)
    assert frechet_distance(np.zeros(6), shared, shift, shared) == pytest.approx(shift @ shift)


def test_commuting_covariances():
    basis, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    a, b = RNG.uniform(0.1, 3, (2, 5))
    distance = frechet_distance(np.zeros(5), (basis * a) @ basis.T, np.zeros(5), (basis * b) @ basis.T)
    assert distance == pytest.approx(np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


def test_general_covariances_against_scipy():
    a, b = covariance(7, 30), covariance(7, 30)
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.trace(a + b - 2 * root.real)
    assert frechet_distance(np.zeros(7), a, np.zeros(7), b) == pytest.approx(expected, rel=1e-9)


def test_is_a_symmetric_distance_for_deficient_ranks():
    means, (a, b) = RNG.normal(size=(2, 8)), (covariance(8, 3), covariance(8, 2))
    forth, back = frechet_distance(means[0], a, means[1], b), frechet_distance(means[1], b, means[0], a)
    assert forth == pytest.approx(back)
    assert forth > 0
    assert frechet_distance(means[0], a, means[0], a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(means[0], a, means[1], np.zeros((8, 8))) == pytest.approx(
        np.sum((means[0] - means[1]) ** 2) + np.trace(a)
    )
