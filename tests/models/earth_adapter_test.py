"""Earth-Adapter compared with a restatement in NumPy that uses Fourier transforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crossearth_jax.config import EarthAdapterConfig, ModelConfig, UserError, ViTConfig
from crossearth_jax.models.earth_adapter import EarthAdapter, low_frequencies

VIT = ViTConfig(width=6, depth=3, heads=2, mlp_width=8, feature_blocks=(0, 1, 2, 2))
CONFIG = ModelConfig(
    vit=VIT, adapter="earth_adapter", earth_adapter=EarthAdapterConfig(hidden=4, cutoff=0.6, frequency_blocks=(1, -1))
)


def numpy_low(x, cutoff):
    height, width = x.shape[1:3]
    n = int(min(height, width) * cutoff // 2)
    mask = np.zeros((height, width))
    mask[height // 2 - n : height // 2 + n, width // 2 - n : width // 2 + n] = 1
    spectrum = np.fft.fftshift(np.fft.fft2(x, axes=(1, 2)), axes=(1, 2)) * mask[:, :, None]
    return np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2)), axes=(1, 2)).real


@pytest.mark.parametrize(
    ("height", "width", "cutoff"), [(32, 32, 0.3), (8, 6, 0.7), (5, 7, 0.9), (8, 8, 1.0), (4, 4, 0.3)]
)
def test_low_frequencies_are_those_of_the_fourier_transform(height, width, cutoff):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    np.testing.assert_allclose(low_frequencies(jnp.asarray(x), cutoff), numpy_low(x, cutoff), atol=1e-5)


def test_refinement_equals_numpy():
    adapter = EarthAdapter(CONFIG, jnp.dtype("float32"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, node in nnx.iter_graph(adapter):
        if isinstance(node, nnx.Param):
            node[...] = jnp.asarray(rng.normal(size=node.shape), jnp.float32)
    x = rng.normal(size=(2, 1 + 5 * 4, 6)).astype(np.float32)
    patches = x[:, 1:].astype(np.float64)

    def expert(module, i, features):
        hidden = np.maximum(features @ np.asarray(module.down.kernel[...])[i] + np.asarray(module.down.bias[...])[i], 0)
        return hidden @ np.asarray(module.up.kernel[...])[i] + np.asarray(module.up.bias[...])[i]

    for block, slot in ((0, None), (1, 0), (2, 1)):
        update = expert(adapter.spatial, block, patches)
        if slot is not None:
            low = numpy_low(patches.reshape(2, 5, 4, 6), 0.6).reshape(patches.shape)
            router, experts = adapter.frequency.router, adapter.frequency
            logits = patches @ np.asarray(router.kernel[...])[slot] + np.asarray(router.bias[...])[slot]
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            outputs = [update, expert(experts.low, slot, low), expert(experts.high, slot, patches - low)]
            update = sum(shares[..., k : k + 1] * output for k, output in enumerate(outputs))
        inputs = jax.tree.map(lambda leaf, i=block: leaf[i], adapter.per_block())
        found = adapter.refine(jnp.asarray(x), inputs, rows=5)[:, 1:]
        expected = patches + float(adapter.scale[block]) * update
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [(), (3,), (-4,)])
def test_frequency_blocks_that_do_not_exist_are_named(blocks):
    sizes = dataclasses.replace(CONFIG.earth_adapter, frequency_blocks=blocks)
    with pytest.raises(UserError, match="expected one or more of the 3 blocks"):
        EarthAdapter(dataclasses.replace(CONFIG, earth_adapter=sizes), jnp.dtype("float32"), rngs=nnx.Rngs(0))
