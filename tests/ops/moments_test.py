"""Streaming moments compared with NumPy, the covariance factor with the published one, and effective dimensions."""

import pathlib

import numpy as np
import pytest

from crossearth_jax.ops.moments import Moments, covariance_factor, effective_dimension

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"


def test_streaming_equals_two_passes_however_it_is_cut():
    vectors = np.random.default_rng(0).normal(1e6, 1e-2, (103, 5))  # a naive sum of squares would lose all digits
    parts = Moments(5), Moments(5)
    for part, batches in zip(parts, (np.split(vectors[:40], [1, 8]), np.split(vectors[40:], [0, 30])), strict=True):
        for batch in batches:
            part.add(batch)
    parts[0].merge(parts[1])
    parts[0].merge(Moments(5))
    assert parts[0].count == 103
    np.testing.assert_allclose(parts[0].mean, vectors.mean(0), rtol=1e-15)
    np.testing.assert_allclose(parts[0].covariance, np.cov(vectors.T), rtol=1e-6, atol=1e-11)


def test_one_vector_has_no_spread():
    moments = Moments(3)
    moments.add(np.array([[1.0, 2.0, 3.0]], np.float32))
    np.testing.assert_array_equal(moments.mean, [1, 2, 3])
    np.testing.assert_array_equal(moments.covariance, np.zeros((3, 3)))


def test_factor_of_the_published_statistics():
    covariance = np.load(GOLDEN / "style_statistics_pbn.npz")["covariance"]
    golden = np.load(GOLDEN / "style_augmentor.npz")
    factor = covariance_factor(covariance)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-12)
    np.testing.assert_allclose(np.sum(factor**2, axis=0), golden["singular_values"], rtol=1e-9)
    signs = np.sign(np.sum(factor * golden["A"], axis=0))  # arbitrary in a decomposition
    np.testing.assert_allclose(factor * signs, golden["A"], atol=1e-6)


@pytest.mark.parametrize(
    ("variances", "expected"), [((2, 2, 2), 3), ((5, 0, 0), 1), ((0, 0, 0), 0), ((3, 1, 0), 4 / 3**0.75)]
)
def test_effective_dimension(variances, expected):
    assert effective_dimension(np.diag(np.array(variances, float))) == pytest.approx(expected)
