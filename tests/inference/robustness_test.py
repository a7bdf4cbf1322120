"""Scores under appearance shifts: correct numbers, and continuing after an interruption."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from crossearth_jax import report
from crossearth_jax.augment import shifts
from crossearth_jax.benchmark import DOMAINS, SETTINGS
from crossearth_jax.config import UserError, to_config_dict
from crossearth_jax.inference import evaluate, metrics, robustness
from crossearth_jax.inference.results import row
from crossearth_jax.inference.segmentor import Segmentor, load
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.training.weights_file import export_model

SOURCE = "blue_marble/temperate_green"
SCORED = ("water", "forest", "shrub_grass", "cropland")  # of the source in its own domain
FEW = ("haze", "shadow")


@pytest.fixture(autouse=True)
def few_shifts(monkeypatch):
    monkeypatch.setattr(robustness, "SHIFTS", {name: shifts.SHIFTS[name] for name in FEW})
    monkeypatch.setattr(robustness, "STRENGTHS", (1, 4))


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A configuration and a model like those of a short training; the model predicts several classes."""
    params = jax.jit(SegmentationModel(tiny_config.model).init)(jax.random.key(3))
    params = {name: value * 4 if name.startswith("head/") else value for name, value in params.items()}
    folder = tmp_path_factory.mktemp("run")
    export_model(folder, tiny_config, params, 3)
    return tiny_config, load(folder)


def expected_iou(segmentor, data_dir, change):
    """Class IoU computed in a plain loop over the test images, without the code of the evaluation."""
    split, confusion = PreparedSplit(SOURCE, "test", data_dir), np.zeros((5, 5), np.int64)
    for index in range(len(split)):
        predicted = segmentor.predict(change(split[index]["image"], index)[None])[0]
        confusion += metrics.confusion(split[index]["label"], predicted, 5)
    return dict(zip(DOMAINS[SOURCE].classes, 100 * metrics.iou(confusion), strict=True))


def test_scores_are_those_of_a_loop_over_shifted_images(run, tmp_path):
    config, segmentor = run
    stored = json.loads(robustness.score_shifts(config, tmp_path, segmentor).read_text())
    assert stored["splits"] == {SOURCE: "test"} and stored["checkpoint_step"] == 3
    assert tuple(stored["classes"]) == SCORED
    assert tuple(stored["shifts"]) == FEW
    assert all([*shift["strengths"]] == ["1", "4"] for shift in stored["shifts"].values())
    assert stored["shifts"]["haze"]["strengths"]["4"]["value"] == 0.9

    def shadow(image, record):
        key = jax.random.fold_in(jax.random.key(0), record)
        return np.asarray(shifts.shifted("shadow", jax.numpy.asarray(image[None]), 4, key)[0])

    shadowed = expected_iou(segmentor, config.data.data_dir, shadow)
    clean = expected_iou(segmentor, config.data.data_dir, lambda image, _: image)
    assert shadowed != clean
    for found, expected in ((stored["clean"], clean), (stored["shifts"]["shadow"]["strengths"]["4"], shadowed)):
        np.testing.assert_allclose(
            [found["iou"][name] for name in SCORED], [expected[name] for name in SCORED], atol=0.05
        )
        assert found["miou"] == pytest.approx(np.mean([expected[name] for name in SCORED]), abs=0.05)


def test_goes_on_cell_by_cell_and_begins_anew_for_another_model(run, tmp_path, monkeypatch):
    config, segmentor = run
    scored, original = [], robustness._confusion

    def stops(*arguments):
        scored.append(arguments[-2:])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(robustness, "_confusion", stops)
    with pytest.raises(KeyboardInterrupt):
        robustness.score_shifts(config, tmp_path, segmentor)
    assert [*json.loads((tmp_path / "shifts.json").read_text())["shifts"]["haze"]["strengths"]] == ["1"]
    robustness.score_shifts(config, tmp_path, segmentor)
    assert scored == [("clean", 0), ("haze", 1), ("haze", 4), ("haze", 4), ("shadow", 1), ("shadow", 4)]
    whole = (tmp_path / "shifts.json").read_text()
    robustness.score_shifts(config, tmp_path, segmentor)
    assert len(scored) == 6 and (tmp_path / "shifts.json").read_text() == whole
    other = Segmentor(
        segmentor.model, {name: value + 0.01 for name, value in segmentor.params.items()}, segmentor.description
    )
    robustness.score_shifts(config, tmp_path, other)
    assert len(scored) == 11
    (tmp_path / "shifts.json").write_text("{")
    robustness.score_shifts(config, tmp_path, segmentor)
    assert len(scored) == 16


def test_a_source_without_test_images_and_a_foreign_model_are_refused(run, tmp_path, monkeypatch):
    config, segmentor = run
    untested = dataclasses.replace(DOMAINS[SOURCE], eval_split="train")
    with monkeypatch.context() as patch:
        patch.setattr(robustness, "source_domains", lambda *_: (untested,))
        with pytest.raises(UserError, match="blue_marble/temperate_green has only a train split"):
            robustness.score_shifts(config, tmp_path, segmentor)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, source="blue_marble/arid_green"))
    with pytest.raises(UserError, match="was trained on blue_marble/temperate_green, the configuration's source is"):
        robustness.score_shifts(other, tmp_path, segmentor)


def test_the_report_shows_shifts_of_the_checkpoint_that_is_scored(run, tmp_path):
    config, segmentor = run
    write_json(tmp_path / "config.json", json.loads(to_config_dict(config).to_json()))
    setting = SETTINGS["temperate_green2temperate_brown"]
    entries = {
        step: {setting.name: row(setting, DOMAINS[setting.target].classes, np.diag([4, 3, 2, 1, 1]), step)}
        for step in (3, 4)
    }
    chosen = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, settings=(setting.name,)))
    assert not evaluate.is_evaluated(chosen, tmp_path, segmentor)
    robustness.score_shifts(config, tmp_path, segmentor)
    for step, shown in ((3, True), (4, False)):
        write_json(tmp_path / "results.json", entries[step])
        assert evaluate.is_evaluated(chosen, tmp_path, segmentor) == shown
        page = report.write_report(tmp_path).read_text()
        assert ("Appearance shifts" in page) == shown
