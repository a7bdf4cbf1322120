"""Deformable sampling compared with SciPy, its gradients with a direct formula, and its behaviour when sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.ndimage import map_coordinates

from crossearth_jax.ops import deformable_attention as module
from crossearth_jax.ops.deformable_attention import (
    deformable_attention,
    sample_at_once,
    sample_by_gather,
    sample_by_products,
)

SIZES = ((2, 3), (4, 6))
B, Q, K, P, D = 2, 5, 3, 4, 8
RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((B, sum(h * w for h, w in SIZES), K, D)).astype(np.float32)
LOCATIONS = RNG.uniform(-0.3, 1.3, (B, Q, K, len(SIZES), P, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(size=(B, Q, K, len(SIZES), P)).astype(np.float32)


def levels(values):
    """Return the maps of each level as (b, h, w, k, d)."""
    parts = np.split(values, [SIZES[0][0] * SIZES[0][1]], axis=1)
    return [part.reshape(B, h, w, K, D) for part, (h, w) in zip(parts, SIZES, strict=True)]


def scipy_sample(image, points):
    rows, columns = points[..., 1] * image.shape[0] - 0.5, points[..., 0] * image.shape[1] - 0.5
    return map_coordinates(image.astype(float), [rows, columns], order=1, mode="grid-constant")


@pytest.mark.parametrize("formulation", [sample_by_gather, sample_by_products, sample_at_once])
def test_equals_scipy_inside_and_outside_the_maps(formulation):
    expected = np.zeros((B, Q, K, D))
    for b, k, d in np.ndindex(B, K, D):
        for level, maps in enumerate(levels(VALUES)):
            sampled = scipy_sample(maps[b, :, :, k, d], LOCATIONS[b, :, k, level])
            expected[b, :, k, d] += (sampled * WEIGHTS[b, :, k, level]).sum(axis=-1)
    result = jax.jit(lambda v, x, w: formulation(v, SIZES, x, w))(VALUES, LOCATIONS, WEIGHTS)
    np.testing.assert_allclose(result, expected, atol=3e-6)


@pytest.mark.parametrize("formulation", [sample_by_gather, sample_by_products, sample_at_once])
def test_bfloat16_values_lose_no_more_than_their_precision(formulation):
    values = jnp.asarray(VALUES, jnp.bfloat16)

    def sample(function, values):
        return jax.jit(lambda v, x, w: function(v, SIZES, x, w))(values, LOCATIONS, WEIGHTS)

    result = sample(formulation, values)
    assert result.dtype == jnp.bfloat16
    # Four roundings to 8 bits: of the row weights, the column weights, the sum over columns, and the result.
    error = jnp.abs(result.astype(jnp.float32) - sample(sample_by_gather, values.astype(jnp.float32)))
    largest = sample(sample_by_gather, jnp.abs(values).astype(jnp.float32))
    assert float((error / largest).max()) < 4 * 2**-8


def hat_sampling(values, locations, weights):
    """Compute the same from weights of all pixels, without gathers."""
    total, start = 0, 0
    for level, (h, w) in enumerate(SIZES):
        maps = values[:, start : start + h * w].reshape(B, h, w, K, D)
        start += h * w
        x, y = locations[..., level, :, 0] * w - 0.5, locations[..., level, :, 1] * h - 0.5
        columns = jnp.maximum(0, 1 - jnp.abs(x[..., None] - jnp.arange(w)))
        rows = jnp.maximum(0, 1 - jnp.abs(y[..., None] - jnp.arange(h)))
        total += jnp.einsum("bqkph,bqkpw,bqkp,bhwkd->bqkd", rows, columns, weights[..., level, :], maps)
    return total


@pytest.mark.parametrize("formulation", [sample_by_gather, sample_by_products, sample_at_once])
def test_gradients_equal_those_of_the_formula(monkeypatch, formulation):
    # More queries than are computed at once, with a remainder.
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 2)

    def gradients(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(VALUES, LOCATIONS, WEIGHTS)

    ours = gradients(lambda v, x, w: formulation(v, SIZES, x, w))
    for gradient, expected in zip(ours, gradients(hat_sampling), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_gradient_of_a_sharded_batch_needs_no_communication():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = NamedSharding(mesh, PartitionSpec("data"))
    arguments = [jax.device_put(x, split) for x in (VALUES, LOCATIONS, WEIGHTS)]
    backward = jax.grad(lambda v, x, w: jnp.sum(deformable_attention(v, SIZES, x, w)), argnums=(0, 1))
    text = jax.jit(backward, out_shardings=split).lower(*arguments).compile().as_text()
    assert text and not [name for name in ("all-gather", "all-reduce", "all-to-all", "permute") if name in text]


def test_a_tpu_gets_products(monkeypatch):
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    text = jax.jit(lambda v, x, w: deformable_attention(v, SIZES, x, w)).lower(VALUES, LOCATIONS, WEIGHTS).as_text()
    assert "stablehlo.gather" not in text
