"""The whole benchmark at small size: 14 trainings from miniature archives, then the table of all 29 settings.

The recipes are those of configs/crossearth.py with smaller sizes (network, crop, window, resized images) and two steps.
Only the first training uses styles and masked image modelling: they take most of the compilation time, and the table
does not depend on them.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from miniatures import write_all

from crossearth_jax import benchmark
from crossearth_jax.benchmark import DOMAINS, SETTINGS, TRAININGS
from crossearth_jax.benchmark.registry import prepared_directory, write_domain
from crossearth_jax.config import LossConfig, MimConfig, StyleConfig
from crossearth_jax.inference import benchmark_table
from crossearth_jax.prepare import prepare_domains
from crossearth_jax.training import loop

CONFIG = Path(__file__).parents[1] / "configs" / "crossearth.py"
ROWS = [name for name in SETTINGS if benchmark.training_of(name) is not None]


@pytest.fixture(scope="module")
def experiments():
    spec = importlib.util.spec_from_file_location("configs_crossearth", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folders = write_all(tmp_path_factory.mktemp("archives"))
    data_dir = tmp_path_factory.mktemp("prepared")
    for dataset, folder in folders.items():
        prepare_domains([name for name in DOMAINS if name.startswith(f"{dataset}/")], data_dir, folder)
    return data_dir


def shrunk(config, tiny, data_dir):
    """Return the same recipe for a tiny network."""
    model = dataclasses.replace(
        tiny.model, classes=config.model.classes, mim=MimConfig(width=8, dilations=(1,), image_size=16, token_size=16)
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_dir=str(data_dir), batch_size=8),
        model=model,
        augment=dataclasses.replace(config.augment, crop_size=16),
        style=StyleConfig(probability=0.5, block_size=64),
        loss=LossConfig(points=16),
        train=dataclasses.replace(config.train, steps=2, log_every=1),
        evaluate=dataclasses.replace(config.evaluate, window=16, stride=11, batch_size=8),
    )


def test_fourteen_trainings_fill_the_table(experiments, tiny_config, data_dir, tmp_path):
    for name in ROWS:
        target = DOMAINS[SETTINGS[name].target]
        box = dataclasses.replace(target.resize, box=(16, 16))
        facts = dataclasses.replace(target, resize=box)
        write_domain(prepared_directory(target.name, data_dir), facts)
    runs = tmp_path / "runs"
    for i, training in enumerate(TRAININGS.values()):
        config = shrunk(experiments.experiment(training, training.name), tiny_config, data_dir)
        if i:
            model = dataclasses.replace(config.model, mim=None)
            config = dataclasses.replace(config, model=model, style=None, mim=None)
        run = loop.train(config, runs / training.name)
        assert int(run.state.step) == 2
    whole = experiments.experiment(TRAININGS["potsdam_irrg"], "all", experiments.ROWS)
    benchmark_table.fill_table(shrunk(whole, tiny_config, data_dir), tmp_path / "table", runs)

    results = json.loads((tmp_path / "table" / "results.json").read_text())
    assert list(results) == ROWS and len(ROWS) == 29
    for name, result in results.items():
        assert (result["source"], result["target"]) == (SETTINGS[name].source, SETTINGS[name].target)
        assert result["checkpoint"] == benchmark.training_of(name).name and result["checkpoint_step"] == 2
        assert 0 < result["images"] < result["images_of_benchmark"]
        assert result["pixels"] > 0 and 0 <= result["miou"] <= 100
        assert ("object_iou" in result) == (SETTINGS[name].object is not None)
    report = (tmp_path / "table" / "report.md").read_text()
    assert "29 of 29 settings are scored" in report and "not comparable" in report
    assert report.count("**Mean of ") == 5 and "Settings that are not scored" not in report
