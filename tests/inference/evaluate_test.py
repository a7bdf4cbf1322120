"""Scores are kept if anything after scoring fails, and files of an earlier evaluation are not mixed with them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from crossearth_jax import report
from crossearth_jax.analysis import additions, baselines
from crossearth_jax.benchmark import DOMAINS, SETTINGS
from crossearth_jax.config import UserError, to_config_dict
from crossearth_jax.inference import evaluate
from crossearth_jax.inference.domains import DomainResult, Examples
from crossearth_jax.inference.results import row
from crossearth_jax.inference.segmentor import load
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.training.weights_file import export_model

SETTING = SETTINGS["temperate_green2temperate_brown"]
ADDED = {"style_distance", "baselines"}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A configuration and a model like those of a short training."""
    config = dataclasses.replace(
        tiny_config, evaluate=dataclasses.replace(tiny_config.evaluate, settings=(SETTING.name,))
    )
    params = jax.jit(SegmentationModel(config.model).init)(jax.random.key(0))
    folder = tmp_path_factory.mktemp("run")
    export_model(folder, config, params, 3)
    return config, load(folder)


def fail(*_):
    raise MemoryError("no room\nfor it")


@pytest.fixture
def cheap_baselines(monkeypatch):
    """Replace the baselines by fast ones that are always correct."""

    def confusions(source, targets, data_dir):
        return {"colour": {target: np.diag([4, 3, 2, 1, 1]) for target in targets}}

    monkeypatch.setattr(baselines, "confusions", confusions)


def evaluated(run, workdir):
    config, segmentor = run
    write_json(workdir / "config.json", json.loads(to_config_dict(config).to_json()))
    found = evaluate.evaluate(config, workdir, segmentor)
    additions.add_to_results(config, workdir, segmentor, found)
    return json.loads((workdir / "results.json").read_text())[SETTING.name]


def test_every_addition_may_fail_alone(run, tmp_path, monkeypatch, caplog, cheap_baselines):
    full = evaluated(run, tmp_path)
    assert full.keys() >= ADDED and full["baselines"]["colour"]["miou"] == 100
    files = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert files == {f"{SETTING.name}.npz", "class_features.npz", "style_examples.npz"}
    # From here on the evaluation is not repeated; all numbers come from the one above.
    with np.load(tmp_path / "evaluation" / f"{SETTING.name}.npz") as arrays:
        fields = [field.name for field in dataclasses.fields(DomainResult)]
        scored = DomainResult(*(arrays[name] for name in fields))
    monkeypatch.setattr(evaluate, "score_domain", lambda *_, **__: scored)
    monkeypatch.setattr(additions, "class_features", lambda *_: {"features": np.zeros(1)})
    monkeypatch.setattr(additions, "style_examples", lambda *_: (np.zeros(1), np.zeros(1)))
    monkeypatch.setattr(additions, "style_distances", lambda *_: {SETTING.target: full["style_distance"]})
    cases = {
        (baselines, "confusions"): ("baselines", {"baselines"}, set()),
        (additions, "style_distances"): ("style distances", {"style_distance"}, set()),
        (additions, "style_examples"): ("examples of restyled images", set(), {"style_examples.npz"}),
        (additions, "class_features"): ("features of the classes", set(), {"class_features.npz"}),
        (additions, "find_domain"): ("confusion matrices and examples of images", set(), {f"{SETTING.name}.npz"}),
    }
    for (module, name), (what, fields, missing) in cases.items():
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            found = evaluated(run, tmp_path)
        assert found == {key: value for key, value in full.items() if key not in fields}
        # The files of the earlier evaluation are deleted, so that no report shows them beside these scores.
        assert {path.name for path in (tmp_path / "evaluation").iterdir()} == files - missing
        lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert lines == [f"left out: {what} (MemoryError: no room for it); the scores are complete"]


def test_scores_are_written_before_anything_is_added(run, tmp_path, monkeypatch):
    seen = {}

    def look(*_):
        seen.update(json.loads((tmp_path / "results.json").read_text())[SETTING.name])
        raise KeyboardInterrupt  # is not caught by an addition

    monkeypatch.setattr(additions, "style_distances", look)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, tmp_path)
    assert seen["checkpoint_step"] == 3 and seen["pixels"] > 0 and not seen.keys() & ADDED
    report.write_report(tmp_path)


@pytest.mark.parametrize("flips", [False, True])
def test_flips_are_used_and_recorded(run, tmp_path, monkeypatch, flips):
    config, segmentor = run
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, flips=flips))
    asked, genuine = [], type(segmentor).sliding_windows
    monkeypatch.setattr(
        type(segmentor), "sliding_windows", lambda self, **options: asked.append(options) or genuine(self, **options)
    )
    result = DomainResult(np.diag([4, 3, 2, 1, 1]), *Examples(0).arrays(), np.zeros((1, 3, 15), np.int64))
    monkeypatch.setattr(evaluate, "score_domain", lambda *_, **__: result)
    evaluate.evaluate(config, tmp_path, segmentor)
    entry = json.loads((tmp_path / "results.json").read_text())[SETTING.name]
    assert asked[0]["flips"] == entry["flips"] == flips
    assert ("mirrored windows" in entry["protocol"]) == flips
    assert evaluate.is_evaluated(config, tmp_path, segmentor)
    other = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, flips=not flips))
    assert not evaluate.is_evaluated(other, tmp_path, segmentor)


@pytest.mark.parametrize(("version", "fault"), [(1, None), (None, None), (2, "has the schema version 2, this program")])
def test_the_report_reads_the_versions_it_knows(run, tmp_path, monkeypatch, version, fault):
    config, _ = run
    write_json(tmp_path / "config.json", json.loads(to_config_dict(config).to_json()))
    entry = row(SETTING, DOMAINS[SETTING.target].classes, np.diag([4, 3, 2, 1, 1]), 3)
    entry["schema_version"] = version
    write_json(tmp_path / "results.json", {SETTING.name: {k: v for k, v in entry.items() if v is not None}})
    if fault is None:
        assert report.write_report(tmp_path).exists()
    else:
        with pytest.raises(UserError, match=fault):
            report.write_report(tmp_path)
