"""Images redrawn for people are those that injection makes for the backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.augment.style import draw_style, restyle
from crossearth_jax.config import StyleConfig
from crossearth_jax.diagnostics import redrawn
from crossearth_jax.models.style import StyleNetwork
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.style import load_style
from crossearth_jax.weights.style_statistics import load_statistics


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)


def test_equals_what_training_mixes(images):
    style, network = StyleConfig(alpha=0.5, block_size=32), StyleNetwork("mobile")
    statistics = load_statistics(None, "mobile").sampler
    draws = draw_style(style, statistics, jax.random.key(3), (2,), 128, 128)
    mixed = restyle(style.alpha, network, load_style(network), statistics, draws, normalize(jnp.asarray(images)))
    found = redrawn(images, style, seed=3)
    assert np.abs(found - 255 * np.asarray(mixed)).max() < 0.51  # rounding to 8 bit
    kept = np.asarray(draws.kept)
    assert 0.1 < kept.mean() < 0.6
    np.testing.assert_array_equal(found[kept], images[kept])


def test_without_blocks_every_pixel_is_redrawn(images):
    found = redrawn(images, StyleConfig(alpha=1.0, mask_ratio=1.0))
    assert (found != images).any(-1).mean() > 0.95
