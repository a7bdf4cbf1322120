"""Sizes by hand, pixels and classes against the reference's, whole domains against an image-by-image loop."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.benchmark import DOMAINS, IGNORE, Resize
from crossearth_jax.config import MeshConfig
from crossearth_jax.inference import evaluate, resizing
from crossearth_jax.inputs import loader
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime.parallel import make_mesh

GOLDEN = Path(__file__).parent / "golden"
DOMAIN = "blue_marble/temperate_green"


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((3000, 4000), Resize(box=(512, 512)), (384, 512)),  # RescueNet
        ((4000, 3000), Resize(box=(512, 512)), (512, 384)),
        ((512, 512), Resize(box=(512, 512)), (512, 512)),
        ((1500, 1500), Resize(box=(1500, 1500)), (1500, 1500)),
        ((1000, 1000), Resize(box=(1024, 1024)), (1024, 1024)),  # CASID: a smaller image grows
        ((1000, 900), Resize(box=(1024, 1024)), (1024, 922)),  # 921.6
        ((1000, 900), Resize(box=(1024, 1024), keep_ratio=False), (1024, 1024)),  # its temperate tiles
        ((100, 400), Resize(box=(200, 100)), (50, 200)),  # the box is turned
        ((70, 33), None, (70, 33)),
    ],
)
def test_fitted_size_by_hand(size, resize, expected):
    assert resizing.fitted_size(size, resize) == expected


@pytest.mark.parametrize("index", [0, 3, 6, 15])
def test_resized_images_equal_opencv(index):
    arrays = np.load(GOLDEN / "train" / "resize.npz")
    (case,) = [c for c in json.loads((GOLDEN / "train/resize.json").read_text())["pixels_case"] if c["index"] == index]
    images = jnp.asarray(arrays["img"])[None]
    resized = jax.jit(resizing.resize_images, static_argnums=1)(images, tuple(case["out"]))
    np.testing.assert_array_equal(resized[0], arrays[f"s{index}.img"])


@pytest.mark.parametrize("strip", [7, 36, 256])
def test_classes_at_the_original_size_equal_the_reference(monkeypatch, strip):
    monkeypatch.setattr(resizing, "STRIP", strip)
    golden = np.load(GOLDEN / "tiny" / "slide_small.npz")
    scores = jnp.moveaxis(jnp.asarray(golden["seg_logits"]), 1, -1)
    classes = jax.jit(lambda x: resizing.best_classes(x, (72, 195)))(scores)
    assert (np.asarray(classes) == golden["post_argmax"]).mean() == 1


@pytest.fixture
def mixed_sizes(random_split):
    """Images of three sizes in no order."""
    return random_split(DOMAIN, ((24, 32), (16, 16), (24, 32), (10, 10), (16, 16), (24, 32), (24, 32), (24, 32)))


@pytest.fixture
def model(tiny_config):
    model = SegmentationModel(dataclasses.replace(tiny_config.model, mim=None))
    params = jax.jit(model.init)(jax.random.key(3))
    # A fresh head says the same class everywhere; scaled up, it does not.
    return model, {name: value * 4 if name.startswith("head/") else value for name, value in params.items()}


def test_mixed_sizes_one_compilation_each_same_numbers_on_any_devices(tiny_config, model, mixed_sizes, monkeypatch):
    model, params = model
    resize = Resize(box=(16, 16))  # 24 x 32 becomes 12 x 16: a window that is not square
    facts = dataclasses.replace(DOMAINS[DOMAIN], resize=resize, sizes={"test": (32, 32)})
    monkeypatch.setitem(DOMAINS, DOMAIN, facts)
    monkeypatch.setattr(loader.sources, "PreparedSplit", lambda *_: mixed_sizes)
    expected = sum(confusion_of_one(model, params, resize, example) for example in mixed_sizes)
    assert (expected.sum(axis=0) > 0).sum() > 1  # more than one class is predicted
    config = dataclasses.replace(tiny_config.evaluate, batch_size=4)
    for devices in (jax.devices(), jax.devices()[:1]):
        evaluator = evaluate.Evaluator(model, config, make_mesh(MeshConfig(), devices))
        result = evaluator.domain(params, DOMAIN, "test", "")
        np.testing.assert_array_equal(result.confusion, expected)
        assert evaluator.compilations == 3
        assert result.images.shape == (2, 24, 32, 3)  # examples are of one size


def confusion_of_one(model, params, resize, example):
    """The protocol for one image in a plain loop, with another implementation of the resizing of scores."""
    size = example["label"].shape
    images = resizing.resize_images(jnp.asarray(example["image"])[None], resizing.fitted_size(size, resize))
    filled = [-n % 4 for n in images.shape[1:3]]
    padded = jnp.pad(normalize(images), ((0, 0), (0, filled[0]), (0, filled[1]), (0, 0)))
    scores = jax.jit(model.scores)(params, padded)[0, : images.shape[1], : images.shape[2]]
    scores = jax.image.resize(scores, (*size, scores.shape[-1]), "linear", antialias=False)
    predicted, label = np.asarray(jnp.argmax(scores, -1)), example["label"].astype(int)
    keep = label != IGNORE
    return np.bincount(label[keep] * 5 + predicted[keep], minlength=25).reshape(5, 5)


def test_long_sides_are_thinned_for_the_report(mixed_sizes, monkeypatch):
    monkeypatch.setattr(evaluate, "EXAMPLE_SIDE", 15)
    examples = evaluate.Examples(3)
    for index in (1, 0, 3, 4, 5):
        example = mixed_sizes[index]
        batch = {name: example[name][None] for name in ("image", "label")} | {"valid": np.array([index != 4])}
        examples.add(batch, jnp.asarray(example["label"] % 5)[None])
    images, labels, predictions = examples.arrays()
    # The first has 16 x 16 pixels, of which every second is kept; others of that size are padding or come later.
    np.testing.assert_array_equal(images, mixed_sizes[1]["image"][None, ::2, ::2])
    assert labels.shape == predictions.shape == (1, 8, 8)
    assert [array.shape for array in evaluate.Examples(0).arrays()] == [(0, 1, 1, 3), (0, 1, 1), (0, 1, 1)]
