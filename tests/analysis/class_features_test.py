"""Class features compared with plain means over pixels, and the selection of images and classes."""

import jax
import numpy as np
import pytest

from crossearth_jax.analysis import class_features
from crossearth_jax.benchmark import IGNORE, Resize
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.weights.native import Description

DOMAINS = ["blue_marble/temperate_green", "blue_marble/temperate_brown"]


@pytest.fixture(scope="module")
def model(tiny_config):
    return SegmentationModel(tiny_config.model)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


def test_pooled_features_are_means_over_the_pixels_of_a_class(model, params):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 4, (2, 16, 16)).astype(np.uint8)  # the fifth class is absent
    labels[0, :7, :9] = IGNORE
    means, shares = jax.jit(class_features.pooled, static_argnums=0)(
        model, params, *map(jax.numpy.asarray, (images, labels))
    )
    level = np.asarray(model.features(params, normalize(jax.numpy.asarray(images))).levels[-1])
    pixels = level.repeat(4, 1).repeat(4, 2)  # a pixel has the feature of its patch of 4 x 4
    for image in range(2):
        for kind in range(4):
            chosen = labels[image] == kind
            np.testing.assert_allclose(means[image, kind], pixels[image][chosen].mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(shares[image, kind], chosen.mean(), rtol=1e-5)
    assert (np.asarray(means)[:, 4] == 0).all() and (np.asarray(shares)[:, 4] == 0).all()


def test_rows_are_the_images_classes_that_cover_enough(tiny_config, model, params, monkeypatch):
    monkeypatch.setattr(class_features, "IMAGES", 18)  # not a multiple of the batch size 4
    described = Description(model=model.config, window=16, stride=11)
    segmentor = Segmentor(model, params, described)
    found = class_features.class_features(segmentor, DOMAINS[0], DOMAINS, tiny_config.data.data_dir)
    expected = []
    for number, domain in enumerate(DOMAINS):
        split = PreparedSplit(domain, "test", tiny_config.data.data_dir)
        for index in range(min(18, len(split))):
            label = split[index]["label"]
            top, left = ((side - 16 + 1) // 2 for side in label.shape)  # the middle window
            middle = label[top : top + 16, left : left + 16]
            expected += [(number, kind) for kind in range(5) if (middle == kind).mean() >= class_features.SHARE]
    assert list(zip(found["domains"], found["classes"], strict=True)) == expected
    assert found["features"].shape == (len(expected), tiny_config.model.vit.width)
    assert found["features"].dtype == np.float16 and np.isfinite(found["features"]).all()
    assert found["domain_names"].tolist() == DOMAINS and found["class_names"][0] == "water"


def test_images_are_cut_at_the_size_they_are_scored_at():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    example = {
        "image": image.repeat(4, 0).repeat(4, 1),
        "label": np.uint8([[1, 2], [3, IGNORE]]).repeat(4, 0).repeat(4, 1),
    }
    shrunk, label = class_features._resized(example, Resize(box=(4, 4), keep_ratio=False))
    assert shrunk.shape == (4, 4, 3)
    np.testing.assert_array_equal(label, np.uint8([[1, 2], [3, IGNORE]]).repeat(2, 0).repeat(2, 1))
