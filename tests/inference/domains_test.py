"""Scores of whole domains, compared with a plain loop over their images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.benchmark import DOMAINS, IGNORE, Resize
from crossearth_jax.config import UserError
from crossearth_jax.inference import domains, metrics, resizing
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.native import Description

DOMAIN = "blue_marble/temperate_green"


@pytest.fixture
def mixed_sizes(random_split):
    """Images of three sizes in no order."""
    return random_split(DOMAIN, ((24, 32), (16, 16), (24, 32), (10, 10), (16, 16), (24, 32), (24, 32), (24, 32)))


@pytest.fixture
def model(tiny_config):
    model = SegmentationModel(dataclasses.replace(tiny_config.model, mim=None))
    params = jax.jit(model.init)(jax.random.key(3))
    # A new head predicts the same class everywhere; with larger parameters it predicts several.
    return model, {name: value * 4 if name.startswith("head/") else value for name, value in params.items()}


def test_a_domain_of_mixed_sizes_equals_a_loop_over_its_images(model, mixed_sizes, monkeypatch):
    model, params = model
    resize = Resize(box=(16, 16))  # 24 x 32 becomes 12 x 16: a window that is not square
    facts = dataclasses.replace(DOMAINS[DOMAIN], resize=resize, sizes={"test": (32, 32)})
    monkeypatch.setattr(domains, "PreparedSplit", lambda *_: mixed_sizes)
    expected = sum(confusion_of_one(model, params, resize, example) for example in mixed_sizes)
    assert (expected.sum(axis=0) > 0).sum() > 1  # more than one class is predicted
    segmentor = Segmentor(model, params, Description(model=model.config, window=16, stride=11))
    windows = segmentor.sliding_windows(batch_size=4)
    result = domains.score_domain(windows, facts, "test", "", examples=2, temperatures=(1.0, 3.0))
    np.testing.assert_array_equal(result.confusion, expected)
    pixels, correct, confidence = np.moveaxis(result.reliability, 1, 0).sum(-1)
    assert set(pixels) == {expected.sum()} and set(correct) == {np.trace(expected)}
    assert pixels[0] / 5 < confidence[1] * metrics.UNIT < confidence[0] * metrics.UNIT < pixels[0]
    assert result.images.shape == (2, 24, 32, 3)  # examples are of one size


def test_images_above_the_stated_size_are_refused(model, mixed_sizes, monkeypatch):
    facts = dataclasses.replace(DOMAINS[DOMAIN], sizes={"test": (24, 24)})
    monkeypatch.setattr(domains, "PreparedSplit", lambda *_: mixed_sizes)
    segmentor = Segmentor(*model, Description(model=model[0].config, window=16, stride=11))
    with pytest.raises(UserError, match=r"record 0 has size \(24, 32\), expected at most \(24, 24\)"):
        domains.score_domain(segmentor.sliding_windows(), facts, "test", "")


def confusion_of_one(model, params, resize, example):
    """The protocol for one image in plain code, with another implementation of the resizing of scores."""
    size = example["label"].shape
    images = jnp.asarray(resizing.resized_image(example["image"], resize))[None]
    filled = [-n % 4 for n in images.shape[1:3]]
    padded = jnp.pad(normalize(images), ((0, 0), (0, filled[0]), (0, filled[1]), (0, 0)))
    scores = jax.jit(model.scores)(params, padded)[0, : images.shape[1], : images.shape[2]]
    scores = jax.image.resize(scores, (*size, scores.shape[-1]), "linear", antialias=False)
    predicted, label = np.asarray(jnp.argmax(scores, -1)), example["label"].astype(int)
    keep = label != IGNORE
    return np.bincount(label[keep] * 5 + predicted[keep], minlength=25).reshape(5, 5)


def test_long_sides_are_thinned_for_the_report(mixed_sizes, monkeypatch):
    monkeypatch.setattr(domains, "EXAMPLE_SIDE", 15)
    examples = domains.Examples(3)
    for index in (1, 0, 4, 5):
        examples.add(mixed_sizes[index], (mixed_sizes[index]["label"] % 5).astype(np.uint8))
    images, labels, predictions = examples.arrays()
    # Every second pixel of the first image (16 x 16) is kept; the other images must have its size.
    np.testing.assert_array_equal(images, np.stack([mixed_sizes[i]["image"][::2, ::2] for i in (1, 4)]))
    assert labels.shape == predictions.shape == (2, 8, 8)
    assert [array.shape for array in domains.Examples(0).arrays()] == [(0, 1, 1, 3), (0, 1, 1), (0, 1, 1)]
