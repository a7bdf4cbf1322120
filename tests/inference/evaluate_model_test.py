"""Scores of a loaded model on one setting, compared with a direct count of its predictions."""

import dataclasses

import jax
import numpy as np
import pytest

from crossearth_jax import benchmark
from crossearth_jax.config import UserError
from crossearth_jax.inference.evaluate import PROTOCOL, evaluate_model, protocol_text
from crossearth_jax.inference.segmentor import Segmentor
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.training.styles import style_targets
from crossearth_jax.weights.native import Description
from crossearth_jax.weights.style_statistics import Provenance, from_moments, save_statistics

SETTING = benchmark.SETTINGS["temperate_green2temperate_brown"]


@pytest.fixture(scope="module")
def model(tiny_config):
    network = SegmentationModel(dataclasses.replace(tiny_config.model, mim=None))
    params = jax.jit(network.init)(jax.random.key(0))
    taxonomy = benchmark.TAXONOMIES["blue_marble"]
    described = Description(
        model=network.config, class_names=taxonomy.classes, palette=taxonomy.palette, window=16, stride=11
    )
    return Segmentor(network, params, described)


def test_scores_are_those_of_the_models_predictions(model, tiny_config):
    score, result = evaluate_model(model, SETTING, tiny_config.data.data_dir, batch_size=8)
    split = PreparedSplit(SETTING.target, "test", tiny_config.data.data_dir)
    images, labels = (np.stack([split[i][name] for i in range(len(split))]) for name in ("image", "label"))
    predicted = model.predict(images)
    iou = {}
    for index, name in enumerate(benchmark.TAXONOMIES["blue_marble"].classes):
        truth, found = labels == index, (predicted == index) & (labels != benchmark.IGNORE)
        iou[name] = 100 * (truth & found).sum() / max((truth | found).sum(), 1)
    assert score["iou"] == {name: pytest.approx(iou[name], abs=1e-3) for name in SETTING.classes}
    assert score["miou"] == pytest.approx(np.mean([iou[name] for name in SETTING.classes]), abs=1e-3)
    np.testing.assert_array_equal(result.images, images[:4])
    np.testing.assert_array_equal(result.predictions, predicted[:4])


def test_another_number_of_classes_is_refused(model, tiny_config):
    other = dataclasses.replace(tiny_config.model, classes=6)
    with pytest.raises(UserError, match="the model has 6 classes, blue_marble/temperate_brown has 5: water, forest"):
        evaluate_model(dataclasses.replace(model, model=SegmentationModel(other)), SETTING, "unused")


def test_results_say_which_targets_the_styles_were_estimated_from(tiny_config, tmp_path):
    target = "blue_marble/arid_green"
    provenance = Provenance(
        network="mobile", digest="", count=9, sources=(target,), domains=(target,), allowed_targets=(target,)
    )
    save_statistics(tmp_path / "s.npz", from_moments(np.zeros(100), np.eye(100), provenance))
    style = dataclasses.replace(tiny_config.style, statistics=str(tmp_path / "s.npz"))
    seen = style_targets(dataclasses.replace(tiny_config, style=style))
    assert seen == (target,) and style_targets(tiny_config) == ()
    assert (
        protocol_text(tiny_config, SETTING, seen)
        == f"{PROTOCOL}; the style statistics were estimated with images of {target}"
    )
    assert protocol_text(tiny_config, SETTING, ()) == PROTOCOL
