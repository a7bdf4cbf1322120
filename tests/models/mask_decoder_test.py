"""Rules of the attention mask; network_test compares the decoder with golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from crossearth_jax.config import HeadConfig, ModelConfig, ViTConfig
from crossearth_jax.models.mask_decoder import open_if_empty
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.pixel_decoder import PixelFeatures

VIT = ViTConfig(image_size=16, width=8, depth=4, heads=1, mlp_width=8, feature_blocks=(0, 1, 2, 3))


def test_a_query_with_an_empty_mask_looks_everywhere():
    allowed = jnp.array([[[True, False, False], [False, False, False]]])
    np.testing.assert_array_equal(open_if_empty(allowed), [[[True, False, False], [True, True, True]]])


def test_no_gradient_through_the_attention_mask():
    config = HeadConfig(width=8, heads=2, groups=2, decoder_layers=1, decoder_mlp_width=8, queries=3)
    model = SegmentationModel(ModelConfig(classes=2, vit=VIT, reins=None, head=config))
    decoder = model.network(jax.jit(model.init)(jax.random.key(0))).head.mask_decoder
    random = np.random.default_rng(0)
    memories = tuple(jnp.asarray(random.standard_normal((1, n, n, 8)), jnp.float32) for n in (2, 4, 8))
    masks = jnp.asarray(random.standard_normal((1, 16, 16, 8)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(pixels):
        return jnp.sum(jnp.sin(decoder.states(pixels, decoder.queries[...])[-1]))

    result = gradient(PixelFeatures(memories, masks))
    np.testing.assert_array_equal(result.masks, np.zeros(masks.shape))
    assert jnp.abs(result.memories[0]).max() > 0
