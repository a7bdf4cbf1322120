"""Properties that the golden numbers do not test: feature blocks, gated MLP, resizing of the position table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit

from crossearth_jax.config import ModelConfig, ViTConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.vit import Adapter, position_table
from crossearth_jax.ops.normalization import standardize
from crossearth_jax.ops.resize import cubic_kernel, interpolation_matrix
from crossearth_jax.ops.rotary import rotation

CONFIG = ViTConfig(
    image_size=32, patch_size=8, width=16, depth=4, heads=2, mlp_width=32, feature_blocks=(1, 3), layer_scale=0.5
)


# The same with registers and rotary positions, as in DINOv3.
ROTARY = dataclasses.replace(CONFIG, registers=3, position="rope", key_bias=False)


class Counting(Adapter):
    """An adapter that adds the number of the block."""

    def per_block(self):
        return jnp.arange(1.0, 5.0)

    def refine(self, x, inputs, rows):
        return x + inputs


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)


def build(config):
    model = SegmentationModel(ModelConfig(vit=config, reins=None, head=None))
    return model.network(jax.jit(model.init)(jax.random.key(0))).backbone


@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["table", "rope"])
@pytest.mark.parametrize("adapter", [None, Counting()])
def test_features_are_those_of_the_chosen_blocks(images, adapter, config):
    vit, others = build(config), 1 + config.registers
    angles = rotation(4, 4, 8, others) if config is ROTARY else None

    @jax.jit
    def one_by_one(vit, images):
        outputs, x = [], vit.embed(images)
        for i in range(CONFIG.depth):
            x = jax.tree.map(lambda p, i=i: p[i], vit.blocks)(x, angles=angles)
            if adapter:
                x = x.at[:, others:].add(i + 1)
            outputs.append(x[:, others:].reshape(2, 4, 4, 16))
        return outputs[1], outputs[3]

    features = jax.jit(lambda vit, images: vit(images, adapter))(vit, images)
    for level, expected in zip(features, one_by_one(vit, images), strict=True):
        np.testing.assert_allclose(level, expected, atol=1e-5)


@pytest.mark.parametrize(("config", "remat"), [(CONFIG, "blocks"), (CONFIG, "cheap"), (ROTARY, "cheap")])
def test_recomputing_activations_changes_no_gradient(images, config, remat):
    def gradient(remat):
        vit = build(dataclasses.replace(config, remat=remat))
        loss = lambda vit: sum(jnp.sum(jnp.sin(level)) for level in vit(images))  # noqa: E731
        return jax.jit(jax.grad(loss))(vit)

    for kept, recomputed in zip(jax.tree.leaves(gradient("none")), jax.tree.leaves(gradient(remat)), strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-5)


def products(jaxpr):
    """Count the matrix products of a jaxpr and of everything inside it, the body of a loop once."""
    values = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(eqn.params)]
    inner = [getattr(value, "jaxpr", value) for value in values]
    here = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return here + sum(products(value) for value in inner if hasattr(value, "eqns"))


@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["table", "rope"])
def test_only_attention_weights_are_computed_twice_if_products_are_kept(images, config):
    def count(remat):
        vit = build(dataclasses.replace(config, remat=remat))
        frozen, graph = nnx.state(vit), nnx.graphdef(vit)
        loss = lambda x: sum(jnp.sum(level) for level in nnx.merge(graph, frozen)(x))  # noqa: E731
        return products(jax.make_jaxpr(jax.grad(loss))(images).jaxpr)

    # "blocks" repeats five: queries, keys and values in one, both of attention, its projection, the first of the MLP.
    assert count("blocks") - count("cheap") == 5
    assert count("cheap") == count("none")


def test_gated_mlp_equals_the_formula():
    mlp = build(dataclasses.replace(CONFIG, swiglu=True, depth=1, feature_blocks=(0,))).blocks.mlp
    mlp = jax.tree.map(lambda p: 10 * p[0], mlp)
    x = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    gate, hidden = np.split(x @ np.asarray(mlp.w12.kernel[...], np.float64), 2, axis=-1)
    expected = (gate * expit(gate) * hidden) @ np.asarray(mlp.w3.kernel[...])
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, atol=1e-6)


def test_position_table_is_resized_unless_it_fits_exactly():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)
    np.testing.assert_array_equal(position_table(table, 4, 4), table.reshape(4, 4, 3))
    # The table is also resized for a grid of another shape with the same number of patches.
    assert position_table(table, 2, 8).shape == (2, 8, 3)
    resized = position_table(table, 2, 4)[:, 1, 0]
    rows = interpolation_matrix(4, 2, scale=2.1 / 4, kernel=cubic_kernel)
    columns = interpolation_matrix(4, 4, scale=4.1 / 4, kernel=cubic_kernel)
    np.testing.assert_allclose(resized, rows @ table.reshape(4, 4, 3)[..., 0] @ columns[1], atol=1e-6)


def test_pixel_statistics_standardise_what_the_patch_embedding_sees(images):
    statistics = ((50.0, 60.0, 30.0), (20.0, 10.0, 5.0))
    plain, standardised = build(CONFIG), build(dataclasses.replace(CONFIG, pixel_statistics=statistics))
    expected = plain.embed(standardize(images, *statistics))
    np.testing.assert_allclose(standardised.embed(images), expected, atol=1e-5)
    assert not np.allclose(plain.embed(images), expected, atol=0.1)
