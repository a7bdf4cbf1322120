"""The notebooks run from top to bottom as they are committed, shortened by the environment variables they read."""

import json
import os
import re
import time
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.native import Description, save_native

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

# A network that compiles in seconds, and few steps; everything else is as committed.
TINY = (
    "--config.train.steps=2 --config.train.checkpoint_every=2 --config.data.batch_size=8 --config.model.vit.width=16 "
    "--config.model.vit.heads=2 --config.model.vit.mlp_width=32 --config.model.reins.tokens=4 "
    "--config.model.head.width=16 --config.model.head.groups=4 --config.model.head.decoder_layers=1 "
    "--config.model.mim.width=8 --config.evaluate.stride=8 --config.evaluate.examples=2"
)


def executed(name, monkeypatch, **parameters):
    """Run a notebook; return its cells with their outputs."""
    for key, value in parameters.items():
        monkeypatch.setenv(f"CROSSEARTH_{key}", str(value))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env=os.environ | {"PYTHONWARNINGS": "default"})
    if folder := os.environ.get("CROSSEARTH_KEEP_NOTEBOOKS"):
        nbformat.write(notebook, Path(folder) / f"{name}.ipynb")
    return notebook.cells


def outputs(cells, kind):
    """Return the outputs of one MIME type."""
    shown = (output for cell in cells for output in cell.get("outputs", ()) if "data" in output)
    return [output.data[kind] for output in shown if kind in output.data]


def test_quickstart_trains_reports_and_maps(monkeypatch, tmp_path):
    run = Path(os.environ.get("CROSSEARTH_RUN", tmp_path / "run"))  # CI has one already, and says with which flags
    options = os.environ.get("CROSSEARTH_FLAGS", f"{TINY} --config.data.data_dir={tmp_path}/data")
    own = f"{TINY} --config.data.batch_size=2 --config.evaluate.stride=128 --config.data.data_dir={tmp_path}/data"
    start = time.time()
    cells = executed("quickstart_blue_marble", monkeypatch, RUN=run, FLAGS=options, OWN_FLAGS=own, BOUNDS="9,44,11,46")
    report, *headings = outputs(cells, "text/markdown")
    assert "| temperate brown (temperate_green2temperate_brown) |" in report
    assert headings == ["**blue_marble/temperate_green**", "**blue_marble/cold_brown**"]
    assert len(outputs(cells, "image/png")) == 4
    for made in ("results.json", "report.html", "map.tif"):
        assert (run / made).stat().st_mtime > start
    assert json.loads((run.with_name(f"{run.name}-own") / "results.json").read_text()).keys() == {
        "inland2inland", "inland2coast",
    }  # fmt: skip


def test_evaluate_colab_scores_a_checkpoint(monkeypatch, tmp_path, tiny_config):
    path, model = tmp_path / "tiny.safetensors", SegmentationModel(tiny_config.model)
    params = jax.jit(model.init)(jax.random.key(0))
    save_native(path, jax.device_get(params), Description(model=tiny_config.model, window=16, stride=16))
    parameters = {"CHECKPOINT": path, "SETTING": "temperate_green2temperate_brown", "DATA": tiny_config.data.data_dir}
    cells = executed("evaluate_colab", monkeypatch, **parameters)
    (table,) = outputs(cells, "text/markdown")
    assert re.search(r"\| water \| [\d.]+ \|\n(.*\n)+\| \*\*mIoU\*\* \| \*\*[\d.]+\*\* \|", table)
    assert len(outputs(cells, "image/png")) == 1


def test_style_injection_shows_its_pictures(monkeypatch, tmp_path):
    cells = executed("style_injection", monkeypatch, SIDE=128, DATA=tmp_path)
    assert len(outputs(cells, "image/png")) == 4
    (distances,) = [text for text in outputs(cells, "text/plain") if text.startswith("array")]
    matrix = np.array(re.findall(r"[\d.]+", distances), float)[:16].reshape(4, 4)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.diag(matrix).max() == 0 < matrix[~np.eye(4, dtype=bool)].min()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
