"""Bilinear sampling compared with SciPy, with zeros outside the map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from crossearth_jax.ops import sampling

POINTS = np.random.default_rng(0).uniform(-0.2, 1.2, (200, 2)).astype(np.float32)


def scipy_sample(values, points):
    pixels = np.stack([points[:, 1] * values.shape[0] - 0.5, points[:, 0] * values.shape[1] - 0.5])
    return map_coordinates(values.astype(float), pixels, order=1, mode="grid-constant")


def test_samples_equal_scipy_inside_and_outside():
    values = np.random.default_rng(1).standard_normal((13, 7, 3)).astype(np.float32)
    expected = np.stack([scipy_sample(values[..., c], POINTS) for c in range(3)], axis=-1)
    np.testing.assert_allclose(jax.jit(sampling.sample_channels)(values, POINTS), expected, atol=2e-6)
    np.testing.assert_allclose(jax.jit(sampling.sample_points)(values[..., 0], POINTS), expected[:, 0], atol=2e-6)


def test_formulation_for_tpu_equals_the_other_with_its_gradient(monkeypatch):
    values = jnp.asarray(np.random.default_rng(1).standard_normal((13, 7)), jnp.float32)

    def sample(values):
        sampled = sampling.sample_points(values, jnp.asarray(POINTS))
        return (sampled**2).sum(), sampled

    gathered = jax.jit(jax.grad(sample, has_aux=True))(values)
    monkeypatch.setattr(sampling, "platform", lambda: "tpu")
    multiplied = jax.jit(jax.grad(sample, has_aux=True))(values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), multiplied, gathered)


def test_sample_label_equals_sampling_the_mask():
    labels = np.random.default_rng(2).integers(0, 3, (9, 11)).astype(np.uint8)
    packed = sampling.pack_labels(jnp.asarray(labels))
    sampled = jax.jit(sampling.sample_label)(packed, POINTS, jnp.array(2))
    np.testing.assert_allclose(sampled, scipy_sample(labels == 2, POINTS), atol=2e-6)


def test_pixel_centres_are_exact_and_far_points_are_zero():
    values = jnp.arange(12.0).reshape(3, 4)
    centre = jnp.array([[(2 + 0.5) / 4, (1 + 0.5) / 3], [1e9, -1e9]])
    np.testing.assert_allclose(sampling.sample_points(values, centre), [6.0, 0.0])


@pytest.mark.parametrize(("point", "expected"), [([0.5, 0.5], [[0.25] * 2] * 2), ([0, 0], [[0.25, 0], [0, 0]])])
def test_gradient_spreads_the_weights(point, expected):
    gradient = jax.grad(lambda v: sampling.sample_points(v, jnp.array([point], jnp.float32)).sum())(jnp.ones((2, 2)))
    np.testing.assert_allclose(gradient, expected)


def test_low_precision_maps_are_interpolated_in_float32():
    values = jnp.array([[0.0, 1.0]], jnp.bfloat16)
    point = jnp.array([[0.25 + 0.001, 0.5]])
    for sampled in (sampling.sample_points(values, point), sampling.sample_channels(values[..., None], point)[:, 0]):
        assert sampled.dtype == jnp.float32
        np.testing.assert_allclose(sampled, [0.002], rtol=1e-4)
