"""From a user's files to a report and a map with two commands, like in docs/howto/own_dataset.md, at small size."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely

from crossearth_jax.config import UserError, from_config_dict
from crossearth_jax.config_check import check_classes, check_config
from crossearth_jax.prepare import prepare_file
from crossearth_jax.weights.native import read_description
from tests.miniatures import own

ROOT = Path(__file__).parents[1]
PALETTE = 'palette = ["#ff0000", "#808080", "#00c000"]'
# A network that compiles in seconds, and few steps; everything else is as committed.
SHORT = (
    "--config.train.steps=2", "--config.data.batch_size=2", "--config.model.vit.width=16", "--config.model.vit.heads=2",
    "--config.model.vit.mlp_width=32", "--config.model.reins.tokens=4", "--config.model.head.width=16",
    "--config.model.head.groups=4", "--config.model.head.decoder_layers=1", "--config.model.mim.width=8",
    "--config.evaluate.stride=32", "--config.evaluate.batch_size=8", "--config.evaluate.examples=2",
)  # fmt: skip


def command(name, *arguments):
    """Run a command of the package in the folder of the project; return its standard error."""
    done = subprocess.run(
        [sys.executable, "-m", f"crossearth_jax.{name}", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def train(toml, source, workdir, data_dir, *more):
    """Prepare, train, score and report; return `results.json` and `report.md`."""
    command(
        "main", f"--config=configs/own.py:{toml},{source}", f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}", *SHORT, *more,
    )  # fmt: skip
    return json.loads((workdir / "results.json").read_text()), (workdir / "report.md").read_text()


def test_pictures_of_three_cities_become_a_table(tmp_path):
    """Train on two cities with class weights and score all three."""
    rows = []
    for city, size in (("rome", (40, 48)), ("oslo", (64, 40)), ("lima", (40, 40))):
        own.pairs(tmp_path / city, count=4, size=size)
        rows.append(
            f'[domains.{city}]\nimages = "{city}/i/*.png"\nlabels = "{city}/l/*.png"\n'
            'split = { by = "group", group = "(\\\\d+)", test = ["3"] }\n'
        )
    rows[1] += "gsd = 0.5\n"
    own.domains(tmp_path, "\n".join(rows), classes=f"{own.CLASSES}\n{PALETTE}")
    run = tmp_path / "run"
    results, report = train(
        tmp_path / "domains.toml", "rome+oslo", run, tmp_path / "data", "--config.loss.class_weights=inverse_frequency"
    )
    assert {name: (row["source"], row["target"], row["gap"]) for name, row in results.items()} == {
        "rome+oslo2rome": ("domains/rome+domains/oslo", "domains/rome", []),
        "rome+oslo2oslo": ("domains/rome+domains/oslo", "domains/oslo", []),
        "rome+oslo2lima": ("domains/rome+domains/oslo", "domains/lima", ["region"]),
    }
    assert [row["pixels"] for row in results.values()] == [40 * 48, 64 * 40, 40 * 40]
    assert all(row["baselines"].keys() == {"majority", "colour"} for row in results.values())
    assert all(row["style_distance"] > 0 for row in results.values())
    assert report.startswith("# Trained on rome + oslo\n") and "| lima |" in report
    assert (run / "report.html").stat().st_size > 10_000
    config = json.loads((run / "config.json").read_text())
    assert len(config["loss"]["class_weights"]) == 3 and config["model"]["vit"]["pixel_statistics"][0][0] > 100
    assert (config["augment"]["crop_size"], config["model"]["vit"]["patch_size"]) == (32, 2)
    described = read_description(run / "model.safetensors")
    assert (described.class_names, described.palette[0]) == (("building", "road", "land"), (255, 0, 0))
    assert described.trained_on == "domains/rome+domains/oslo" and described.bands == ("red", "green", "blue")
    assert described.gsd is None  # one says 0.5 m, the other nothing
    np.testing.assert_array_equal(
        np.load(run / "evaluation" / "rome+oslo2lima.npz")["palette"], [[255, 0, 0], [128, 128, 128], [0, 192, 0]]
    )


def test_a_scene_and_its_polygons_become_a_model_and_a_map(tmp_path):
    values = np.random.default_rng(0).integers(0, 3000, (3, 160, 192)).astype(np.uint16)
    own.raster(tmp_path / "city.tif", values, descriptions=("nir", "red", "green"))
    x, y = 500_000, 5_000_000  # of the upper left corner; pixels have 2 m
    own.vector(tmp_path / "city.gpkg", [shapely.box(x, y - 320, x + 150, y), shapely.box(x + 200, y - 99, x + 384, y)],
               ["building", "road"])  # fmt: skip
    own.domains(
        tmp_path,
        'images = "city.tif"\nlabels = { vector = "city.gpkg", column = "kind", background = "land" }\n'
        'bands = ["nir", "red", "green"]\nrange = "0,3000"\ntile = 40\n'
        'split = { by = "block", test = 0.3, block = 80 }\n',
        classes=f"{own.CLASSES}\n{PALETTE}",
    )
    run = tmp_path / "run"
    results, _ = train(tmp_path / "domains.toml", "x", run, tmp_path / "data")
    (row,) = results.values()
    assert (row["source"], row["target"], row["gap"]) == ("domains/x", "domains/x", [])
    described = read_description(run / "model.safetensors")
    assert (described.bands, described.gsd) == (("nir", "red", "green"), pytest.approx(2.0))
    command(
        "predict", f"--checkpoint={run}", tmp_path / "city.tif", f"--out={tmp_path}/map.tif", "--bands=nir,red,green",
        "--range=0,3000", "--stride=32",
    )  # fmt: skip
    with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(tmp_path / "city.tif") as scene:
        assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)
        assert found.colormap(1)[0][:3] == (255, 0, 0) and found.colormap(1)[2][:3] == (0, 192, 0)
        assert set(np.unique(found.read(1))) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "expected FILE,SOURCE or FILE,SOURCE,SIZE"),
        ("domains.toml", "expected FILE,SOURCE or FILE,SOURCE,SIZE"),
        ("{}/domains.toml,x,huge", "sizes: tiny, vit_s, vit_b, vit_l"),
        ("{}/domains.toml,y", "domains.toml has no domain 'y'"),
        ("{}/absent.toml,x", "cannot read .*absent.toml"),
    ],
)
def test_mistakes_in_the_argument_are_explained(argument, message, tmp_path, own_config):
    own.pairs(tmp_path)
    own.domains(tmp_path, 'images = "i/*.png"\nlabels = "l/*.png"\nsplit = "train"')
    with pytest.raises(UserError, match=message):
        own_config(argument.format(tmp_path))


@pytest.mark.parametrize(
    ("size", "crop", "patch", "window", "vit_crop"),
    [((600, 520), 128, 8, 256, 512), ((150, 100), 64, 4, 100, 96), ((20, 30), 16, 1, 20, 32)],
)
def test_sizes_follow_from_the_images(size, crop, patch, window, vit_crop, tmp_path, own_config):
    own.pairs(tmp_path, count=1, size=size)
    own.domains(tmp_path, 'images = "i/*.png"\nlabels = "l/*.png"\nsplit = "train"')
    config = own_config(f"{tmp_path}/domains.toml,x")
    assert (config.augment.crop_size, config.model.vit.patch_size, config.data.window) == (crop, patch, window)
    assert max(config.augment.scales) == pytest.approx(1.25 * window / crop)
    assert (config.model.classes, config.data.source) == (3, "domains/x")
    larger = own_config(f"{tmp_path}/domains.toml,x,vit_b")
    assert (larger.model.vit.width, larger.model.vit.image_size, larger.data.window) == (768, vit_crop, vit_crop)


def test_a_class_that_is_added_waits_for_the_preparation(tmp_path, own_config):
    own.pairs(tmp_path)
    rows = 'images = "i/*.png"\nlabels = "l/*.png"\nsplit = "train"'
    own.domains(tmp_path, rows)
    prepare_file(tmp_path / "domains.toml", tmp_path / "data")
    own.domains(tmp_path, rows, classes='["building", "road", "land", "sea"]')
    config = own_config(f"{tmp_path}/domains.toml,x")  # is not refused
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=str(tmp_path / "data")))
    check_config(config)
    with pytest.raises(UserError, match=r"model\.classes is 4, but domains/x has 3 classes"):
        check_classes(config)
    prepare_file(tmp_path / "domains.toml", tmp_path / "data")
    check_classes(config)


@pytest.fixture
def own_config(monkeypatch):
    """Return `configs/own.py` as a typed, checked configuration."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("configs.own")

    def build(argument):
        config = from_config_dict(module.get_config(argument))
        check_config(config)
        return config

    return build
