"""Restyled images of a report are those that the backbone receives; style distances distinguish domains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from crossearth_jax.analysis.diagnostics import redrawn, style_distances, style_examples
from crossearth_jax.augment.style_injection import draw_style, restyle
from crossearth_jax.config import StyleConfig
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)


def test_equals_what_training_mixes(images):
    style, network = StyleConfig(alpha=0.5, block_size=32), StyleNetwork("mobile")
    statistics = load_statistics(None, "mobile").sampler
    draws = draw_style(style, statistics, jax.random.key(3), (2,), 128, 128)
    mixed = restyle(style, network, load_style(network), statistics, draws, normalize(jnp.asarray(images)))
    found = redrawn(images, style, seed=3)
    assert np.abs(found - 255 * np.asarray(mixed)).max() < 0.51  # rounding to 8 bit
    kept = np.asarray(draws.kept)
    assert 0.1 < kept.mean() < 0.6
    np.testing.assert_array_equal(found[kept], images[kept])


def test_without_blocks_every_pixel_is_redrawn(images):
    found = redrawn(images, StyleConfig(alpha=1.0, mask_ratio=1.0))
    assert (found != images).any(-1).mean() > 0.95


SOURCE, TARGET = "blue_marble/temperate_green", "blue_marble/temperate_brown"


def codes_of(network, params, domain, data_dir, count):
    """Style codes computed one image at a time, with the resizing of the style statistics."""
    split = PreparedSplit(domain, "train", data_dir)
    images = [Image.fromarray(split[i]["image"]).resize((256, 256), Image.Resampling.BILINEAR) for i in range(count)]
    encode = jax.jit(network.encode)
    return np.concatenate([encode(params, np.asarray(image, np.float32)[None] / 255) for image in images])


def test_distances_are_those_of_gaussians_of_codes(tiny_config, blue_marble_dir, monkeypatch):
    monkeypatch.setattr("crossearth_jax.analysis.diagnostics.DISTANCE_IMAGES", 6)
    network = StyleNetwork("mobile")
    params = load_style(network)
    found = style_distances(tiny_config, [TARGET])
    first, second = (codes_of(network, params, domain, blue_marble_dir, 6) for domain in (SOURCE, TARGET))
    a, b = np.cov(first.T.astype(np.float64)), np.cov(second.T.astype(np.float64))
    # tr sqrt(AB) by the singular values of sqrt(A) sqrt(B): both covariances have rank 5 of 100.
    cross = np.linalg.svd(scipy.linalg.sqrtm(a).real @ scipy.linalg.sqrtm(b).real, compute_uv=False).sum()
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * cross
    assert found[SOURCE] == 0
    np.testing.assert_allclose(found[TARGET], expected, rtol=1e-3)  # codes of batches and of single images, float32
    assert expected > 0.1


def test_images_of_several_sizes_are_shown_at_the_size_that_all_have(tiny_config, random_split, monkeypatch):
    split = random_split(SOURCE, [(64, 64), (80, 48), (64, 64), (32, 96)])
    monkeypatch.setattr("crossearth_jax.analysis.diagnostics.PreparedSplit", lambda *_: split)
    clean, shown = style_examples(tiny_config)
    assert clean.shape == shown.shape == (4, 16, 16, 3)


def test_examples_of_a_run_are_restyled_in_blocks(tiny_config):
    style = dataclasses.replace(tiny_config.style, alpha=1.0)
    config = dataclasses.replace(tiny_config, style=style)
    clean, shown = style_examples(config)
    assert clean.shape == shown.shape == (4, 16, 16, 3)
    changed = (np.abs(clean.astype(int) - shown) > 1).any(-1)
    assert 0.2 < changed.mean() < 0.95  # about seven blocks in ten are restyled, the others kept
    again, _ = style_examples(dataclasses.replace(config, style=dataclasses.replace(style, probability=0.1)))
    np.testing.assert_array_equal(clean, again)
