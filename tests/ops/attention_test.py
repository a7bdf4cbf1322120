"""Values and gradients of both formulations of attention compared with a formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.ops import attention, backend

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.standard_normal((2, n, 3, 8)).astype(np.float32) for n in (5, 7, 7))
MASK = RNG.uniform(size=(2, 5, 7)) < 0.5
MASK[..., 0] = True


def expected(mask):
    scores = np.einsum("bqnd,bknd->bnqk", QUERY.astype(np.float64), KEY) / np.sqrt(8)
    weights = np.exp(np.where(mask[:, None], scores, -np.inf))
    return np.einsum("bnqk,bknd->bqnd", weights / weights.sum(axis=-1, keepdims=True), VALUE)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("mask", [MASK, None])
def test_both_formulations_equal_the_formula(monkeypatch, platform, mask):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    result = jax.jit(attention.attention)(QUERY, KEY, VALUE, mask)
    np.testing.assert_allclose(result, expected(np.ones_like(MASK) if mask is None else mask), atol=2e-6)


def test_gradients_of_the_formulations_agree(monkeypatch):
    def gradients(platform):
        monkeypatch.setattr(attention, "platform", lambda: platform)
        loss = lambda *qkv: jnp.sum(jnp.sin(attention.attention(*qkv, jnp.asarray(MASK))))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(QUERY, KEY, VALUE)

    for ours, other in zip(gradients("cpu"), gradients("tpu"), strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-6)


def test_platform_is_the_meshes_if_one_is_active():
    assert backend.platform() == "cpu"
    device = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((4,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert backend.platform() == "tpu"
