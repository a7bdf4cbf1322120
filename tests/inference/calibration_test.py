"""The temperature: recovered from labels drawn with known probabilities, fitted on the hold-out only, stored."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from crossearth_jax.inference import calibration
from crossearth_jax.inference.calibration import calibrated, fit_temperature, source_holdouts, source_temperature
from crossearth_jax.inference.segmentor import load
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.probabilities import log_ratios
from crossearth_jax.training.weights_file import export_model
from crossearth_jax.weights.native import FORMAT, read_description


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_drawn_labels_is_found(temperature):
    random = np.random.default_rng(0)
    logits = random.normal(size=(60_000, 4))
    powers = np.exp(logits)
    labels = (np.cumsum(powers, 1) > random.random((60_000, 1)) * powers.sum(1, keepdims=True)).argmax(1)
    scores = np.exp(logits * temperature)  # the scores of a model whose probabilities need this temperature
    assert fit_temperature(log_ratios(scores), labels) == pytest.approx(temperature, rel=0.03)


def test_labels_that_are_always_right_give_the_lowest_temperature():
    ratios = log_ratios(np.array([[3.0, 1.0], [1.0, 2.0]]))
    assert fit_temperature(ratios, np.array([0, 1])) == pytest.approx(calibration.TEMPERATURES[0], rel=0.01)


def brightness(images, valid):
    """Scores of five classes that need no network."""
    return np.stack([images[..., 0] / 255 + i for i in range(5)], -1).astype(np.float32)


WINDOWS = SlidingWindows(score=brightness, classes=5, window=16, stride=16)


def test_only_the_hold_out_is_read(tiny_config, monkeypatch):
    splits, genuine = [], calibration.PreparedSplit
    monkeypatch.setattr(
        calibration, "PreparedSplit", lambda name, split, folder: splits.append(split) or genuine(name, split, folder)
    )
    sources = source_holdouts(tiny_config)
    assert sources is not None
    found = source_temperature(tiny_config, sources, WINDOWS)
    assert splits == ["validation"]
    assert source_temperature(tiny_config, sources, WINDOWS) == found  # every process of a run finds the same


def test_without_a_hold_out_no_temperature_is_fitted(tiny_config, monkeypatch, caplog):
    """The split that is scored is not used, even if it has the name of a hold-out."""
    caplog.set_level("INFO")
    (domain,) = calibration.source_domains(tiny_config.data.source, tiny_config.data.data_dir)
    scored = dataclasses.replace(domain, eval_split="validation")
    monkeypatch.setattr(calibration, "source_domains", lambda *_: (scored,))
    assert source_holdouts(tiny_config) is None
    assert "unfamiliar ground: blue_marble/temperate_green has no split validation or val besides" in caplog.text


def test_the_weights_file_keeps_everything_and_gets_what_is_measured(tiny_config, tmp_path, monkeypatch):
    model = SegmentationModel(tiny_config.model)
    export_model(tmp_path, tiny_config, jax.jit(model.init)(jax.random.key(0)), 3)
    path = tmp_path / "model.safetensors"
    before, described = safetensors.numpy.load_file(path), read_description(path)
    assert described.temperature is described.reference is None
    measured = calibrated(tiny_config, path, load(path)).description
    assert measured.temperature is not None and measured.reference is not None
    assert measured.reference.size == tiny_config.model.vit.width + 6  # features, mean and deviation of three bands
    stored = {"temperature": measured.temperature, "reference": measured.reference}
    assert read_description(path) == dataclasses.replace(described, **stored)
    after = safetensors.numpy.load_file(path)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(calibration, "source_temperature", lambda *_: 9.0)
    assert calibrated(tiny_config, path, load(path)).description == measured  # nothing is measured again
    assert path.stat().st_mtime_ns == written


def test_files_of_earlier_versions_have_neither(tiny_config, tmp_path):
    model = SegmentationModel(tiny_config.model)
    export_model(tmp_path, tiny_config, jax.jit(model.init)(jax.random.key(0)), 3)
    path = tmp_path / "model.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        content = json.loads(file.metadata()[FORMAT])
    del content["temperature"], content["reference"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {FORMAT: json.dumps(content)})
    described = read_description(path)
    assert described.temperature is described.reference is None
