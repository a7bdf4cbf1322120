"""The benchmark's table from published and converted files: missing inputs, continuing, and scoring again.

Real files are read, but the network is replaced by predictions of the test. CI also fills a table with the command.
"""

import dataclasses
import json

import numpy as np
import pytest

from crossearth_jax import benchmark
from crossearth_jax.benchmark import SETTINGS, Published, Training
from crossearth_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    HeadConfig,
    ModelConfig,
    ReinsConfig,
    UserError,
    ViTConfig,
)
from crossearth_jax.convert import write_reference
from crossearth_jax.inference import benchmark_table
from crossearth_jax.inference.domains import DomainResult, Examples
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.load import Weights
from crossearth_jax.weights.native import Description, save_native

SOURCE = "blue_marble/temperate_green"
ROWS = (
    "temperate_green2temperate_green",
    "temperate_green2temperate_brown",
    "temperate_green2arid_green",
    "D2M",
    "U2R",
)
# The smallest model whose configuration can be derived from the shapes in a .pth file.
MODEL = ModelConfig(
    classes=5,
    vit=ViTConfig(image_size=32, width=384, depth=4, heads=6, mlp_width=32, feature_blocks=(0, 1, 2, 3)),
    reins=ReinsConfig(tokens=6, rank=2),
    head=HeadConfig(encoder_layers=1, encoder_mlp_width=16, decoder_layers=1, decoder_mlp_width=16),
)


@pytest.fixture(scope="module")
def weights():
    shapes = SegmentationModel(MODEL).shapes()
    params = {name: np.full(shape.shape, 0.5, np.float32) for name, shape in shapes.items()}
    taxonomy = benchmark.TAXONOMIES["blue_marble"]
    return Weights(params, Description(model=MODEL, class_names=taxonomy.classes, palette=taxonomy.palette))


@pytest.fixture
def checkpoints(weights, tmp_path, monkeypatch):
    """A folder with a file of a published name; the test registers a training on Blue Marble that has one."""
    training = Training(name="temperate", source=SOURCE, crop=32, weights="Temperate(g)-source.pth")
    monkeypatch.setitem(benchmark.TRAININGS, "temperate", training)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_reference(folder / "Temperate(g)-source.pth", weights)
    return folder


@pytest.fixture
def config(blue_marble_dir):
    return Config(
        name="table",
        data=DataConfig(source=SOURCE, data_dir=str(blue_marble_dir)),
        evaluate=EvaluateConfig(batch_size=16, settings=ROWS),
    )


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture
def scored(monkeypatch):
    """Targets whose images went through a model, in order; an interrupt comes where the list says so."""
    targets = []

    def domain(windows, target, split, data_dir, temperatures):
        assert (windows.classes, windows.window) == (5, 32)
        if targets and targets[-1] == "interrupt":
            targets.pop()
            raise KeyboardInterrupt
        targets.append(target.name)
        # 9 of 10 pixels of every class are correct, the others are predicted as water.
        return DomainResult(np.diag([10, 9, 9, 9, 9]) + WRONG, *Examples(0).arrays(), np.zeros((1, 3, 15), np.int64))

    monkeypatch.setattr(benchmark_table, "score_domain", domain)
    return targets


WRONG = np.zeros((5, 5), np.int64)
WRONG[1:, 0] = 1


def test_interrupted_table_goes_on_and_says_what_is_missing(
    config, checkpoints, weights, scored, tmp_path, monkeypatch
):
    workdir = tmp_path / "table"
    write = benchmark_table.write_json

    def then_interrupt(path, value):
        write(path, value)
        if path.parent.name == "cells":
            scored.append("interrupt")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(benchmark_table, "write_json", then_interrupt)
        benchmark_table.fill_table(config, workdir, checkpoints)
    assert list(results(workdir)) == [ROWS[0]]
    assert "1 of 5 settings are scored" in (workdir / "report.md").read_text()

    benchmark_table.fill_table(config, workdir, checkpoints)
    assert scored == [SETTINGS[name].target for name in ROWS[:2]]  # the first one is not scored again
    first, second = results(workdir).values()
    assert (first["checkpoint"], first["kind"], first["images"]) == ("Temperate(g)-source.pth", "published", 42)
    assert second["images"] == second["images_of_benchmark"] == 19
    # water: 10 hits of 14 predicted; the others 9 hits of 10.
    assert first["iou"] == pytest.approx(
        {"water": 100 * 10 / 14, "forest": 90, "shrub_grass": 90, "cropland": 90}, abs=1e-3
    )
    assert first["published"] is None and not first["cross_domain"] and second["gap"] == ["season"]
    report = (workdir / "report.md").read_text()
    assert "blue_marble/arid_green is not prepared in" in report
    assert "download D2M-Rein.pth from https://huggingface.co/Cusyoung/CrossEarth into this folder, or train" in report
    assert "no checkpoint of loveda_urban" in report and "none was published" in report
    assert "data/massachusetts_roads/README.md says where to get its archives" in report
    assert "32 scenarios" in report and "neither names nor splits" in report
    assert "<table" in (workdir / "report.html").read_text()

    # A converted copy replaces the published file and is scored as another checkpoint, with the same numbers.
    save_native(checkpoints / "Temperate(g)-source.safetensors", weights.params, weights.description)
    benchmark_table.fill_table(config, workdir, checkpoints)
    assert scored[2:] == [SETTINGS[name].target for name in ROWS[:2]]
    again = results(workdir)[ROWS[0]]
    assert (again["kind"], again["iou"]) == ("converted", first["iou"])


def test_damaged_checkpoint_is_a_line_of_the_table(config, checkpoints, tmp_path):
    (checkpoints / "Temperate(g)-source.pth").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match=r"none of the 5 settings could be scored; .*report\.html lists what each"):
        benchmark_table.fill_table(config, tmp_path / "table", checkpoints)
    assert "Temperate(g)-source.pth cannot be used" in (tmp_path / "table" / "report.md").read_text()


def test_mistakes_are_explained(config, tmp_path):
    with pytest.raises(UserError, match=r"--checkpoints=.*nowhere is not a folder"):
        benchmark_table.fill_table(config, tmp_path, tmp_path / "nowhere")
    unknown = dataclasses.replace(config, evaluate=EvaluateConfig(settings=("P2V",)))
    with pytest.raises(UserError, match=r"unknown settings: P2V; known settings: .*P\(i\)2V"):
        benchmark_table.fill_table(unknown, tmp_path, tmp_path)


def row(name, kind="run", **values):
    setting = dataclasses.replace(SETTINGS[name], **values.pop("facts", {}))
    result = {
        "checkpoint": "a", "kind": kind, "checkpoint_step": 3, "images": 49, "images_of_benchmark": 49,
        "miou": 70.0, "iou": dict.fromkeys(setting.classes, 70.0), **values,
    }  # fmt: skip
    return benchmark_table.Row(setting, benchmark.DOMAINS[setting.target], result, ())


def test_two_class_rows_show_both_numbers_and_means_are_unweighted():
    published = Published(miou=38.25, source="made up for this test", confidence="certain")
    rows = [
        row("D2M", object_iou=40.0, facts={"published": published}),
        *(row(name, miou=50.0 + i) for i, name in enumerate(("P(i)2V", "V2P(i)"))),
        row("Sub2Sub", miou=99.0),
    ]
    lines = {line[0].text: line for block in benchmark_table.overview.main_table(rows).blocks for line in block.rows}
    road = lines["D2M"]
    assert (road[3].text, road[3].note, road[4].text) == ("40.0", "road IoU", "70.0")
    assert (road[5].text, road[5].note) == ("38.2", "made up for this test, certain")
    assert lines["Mean of 3"][3].text == f"{np.mean([40, 50, 51]):.1f}"  # without the in-domain row
    assert lines["P(i)2V"][4].text == benchmark_table.overview.NOTHING and lines["P(i)2V"][6].text == ""
    few = benchmark_table.overview.main_table([row("D2M", object_iou=1.0, images=2)]).blocks[0].rows[0]
    assert few[6].text == "2 of 49 images: not comparable"


def test_a_gap_that_is_not_complete_has_no_mean():
    unscored = benchmark_table.Row(SETTINGS["V2P(i)"], benchmark.DOMAINS["potsdam/irrg"], None, ("no checkpoint",))
    rows = [row("P(i)2V"), unscored]
    (block,) = benchmark_table.overview.main_table(rows).blocks
    assert (
        block.rows[-1][3].text == benchmark_table.overview.NOTHING
        and block.rows[-1][6].text == "1 of 2 settings scored: no mean"
    )
    assert benchmark_table.overview.missing_lines(rows) == ["V2P(i): no checkpoint"]
