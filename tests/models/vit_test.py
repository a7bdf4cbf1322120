"""What the golden numbers do not reach: chosen feature blocks, the gated MLP, the position table's rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from crossearth_jax.config import ViTConfig
from crossearth_jax.models.vit import SwigluMlp, VisionTransformer, position_table

CONFIG = ViTConfig(
    image_size=32, patch_size=8, width=16, depth=4, heads=2, mlp_width=32, feature_blocks=(1, 3), layer_scale=0.5
)
FLOAT32 = jnp.dtype("float32")


class Doubling:
    """An adapter that adds its block's number."""

    def per_block(self):
        return jnp.arange(1.0, 5.0)

    def __call__(self, x, inputs):
        return x + inputs


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)


@pytest.mark.parametrize("adapter", [None, Doubling()])
def test_features_are_those_of_the_chosen_blocks(images, adapter):
    vit = VisionTransformer(CONFIG, FLOAT32, rngs=nnx.Rngs(0))

    @jax.jit
    def one_by_one(vit, images):
        outputs, x = [], vit.embed(images)
        for i in range(CONFIG.depth):
            x = jax.tree.map(lambda p, i=i: p[i], vit.blocks)(x)
            if adapter:
                x = x.at[:, 1:].add(i + 1)
            outputs.append(x[:, 1:].reshape(2, 4, 4, 16))
        return outputs[1], outputs[3]

    features = jax.jit(lambda vit, images: vit(images, adapter))(vit, images)
    for level, expected in zip(features, one_by_one(vit, images), strict=True):
        np.testing.assert_allclose(level, expected, atol=1e-5)


def test_recomputing_activations_changes_no_gradient(images):
    def gradient(remat):
        vit = VisionTransformer(dataclasses.replace(CONFIG, remat=remat), FLOAT32, rngs=nnx.Rngs(0))
        loss = lambda vit: sum(jnp.sum(jnp.sin(level)) for level in vit(images))  # noqa: E731
        return nnx.state(jax.jit(jax.grad(loss))(vit))

    for kept, recomputed in zip(jax.tree.leaves(gradient(False)), jax.tree.leaves(gradient(True)), strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-5)


def test_gated_mlp_equals_the_formula():
    mlp = SwigluMlp(CONFIG, FLOAT32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    gate, hidden = np.split(x @ np.asarray(mlp.w12.kernel[...], np.float64), 2, axis=-1)
    expected = (gate * expit(gate) * hidden) @ np.asarray(mlp.w3.kernel[...])
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, atol=1e-6)


def test_position_table_is_resized_unless_it_fits_exactly():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)
    np.testing.assert_array_equal(position_table(table, 4, 4), table.reshape(4, 4, 3))
    # As many patches in another shape are not the table; the first sample sits near -0.5 + 2 / 2.1.
    assert position_table(table, 2, 8).shape == (2, 8, 3)
    ramp = jnp.tile(jnp.arange(8.0)[:, None, None], (1, 8, 1)).reshape(64, 1)
    resized = position_table(ramp, 4, 8)[:, 0, 0]
    # Away from the border cubic interpolation keeps a ramp: (i + 0.5) / scale - 0.5 with scale 4.1 / 8.
    np.testing.assert_allclose(resized[1:3], (np.arange(1, 3) + 0.5) / (4.1 / 8) - 0.5, atol=1e-5)
