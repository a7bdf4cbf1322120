"""The notebooks run from top to bottom as they are committed, shortened by the environment variables they read."""

import json
import os
import re
import shutil
import sysconfig
import time
import venv
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"

# A network that compiles in seconds, and few steps; everything else is as committed.
TINY = (
    "--config.train.steps=2 --config.train.checkpoint_every=2 --config.data.batch_size=8 --config.model.vit.width=16 "
    "--config.model.vit.heads=2 --config.model.vit.mlp_width=32 --config.model.reins.tokens=4 "
    "--config.model.head.width=16 --config.model.head.groups=4 --config.model.head.decoder_layers=1 "
    "--config.model.mim.width=8 --config.evaluate.stride=8 --config.evaluate.examples=2"
)


def executed(name, monkeypatch, *, kernel="python3", folder=NOTEBOOKS, last="", **parameters):
    """Run a notebook in `folder`, and then the cell `last`; return its cells with their outputs."""
    for key, value in parameters.items():
        monkeypatch.setenv(f"CROSSEARTH_{key}", str(value))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(last)] if last else []
    client = NotebookClient(notebook, timeout=1200, kernel_name=kernel, resources={"metadata": {"path": str(folder)}})
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


@pytest.fixture
def kernel_without_the_package(tmp_path, monkeypatch):
    """Return the name of a kernel whose new Python environment has every dependency, but not this package."""
    environment, dependencies, packages = tmp_path / "environment", tmp_path / "dependencies", tmp_path / "packages"
    venv.create(environment, with_pip=True)
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "crossearth" not in entry.name:
            (dependencies / entry.name).symlink_to(entry)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    (site / "dependencies.pth").write_text(str(dependencies))
    kernel = tmp_path / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    command = [str(environment / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "fresh", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    # pip builds in the folder that it installs from, so the checkout itself is left alone.
    for name in ("configs", "crossearth_jax", "data"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, packages)
    monkeypatch.setenv("CROSSEARTH_SOURCE", packages.as_uri())
    return kernel.name


def test_evaluate_colab_installs_and_trains_what_it_needs(
    monkeypatch, tmp_path, kernel_without_the_package, tiny_config
):
    """In a new environment, in an empty folder, without a checkpoint; then a command with flags, in the same kernel."""
    folder = tmp_path / "empty"
    folder.mkdir()
    cells = executed(
        "evaluate_colab",
        monkeypatch,
        kernel=kernel_without_the_package,
        folder=folder,
        last="import sys\n"
        "from crossearth_jax import main\n"
        "config, _ = main._parse(['--config=blue_marble', '--workdir=run', '--config.train.steps=7'])\n"
        "display({'text/kernel': f'{sys.argv[1]} {config.train.steps} {crossearth_jax.__file__}'}, raw=True)",
        RUN="run",
        FLAGS=TINY,
        SETTING="temperate_green2temperate_brown",
        DATA=tiny_config.data.data_dir,
    )
    (table,) = outputs(cells, "text/markdown")
    assert re.search(r"\| water \| [\d.]+ \|\n(.*\n)+\| \*\*mIoU\*\* \| \*\*[\d.]+\*\* \|", table)
    assert len(outputs(cells, "image/png")) == 1
    assert (folder / "run" / "model.safetensors").is_file()
    ((flag, steps, module),) = (text.split() for text in outputs(cells, "text/kernel"))
    assert (flag, steps) == ("-f", "7") and module.startswith(str(tmp_path / "environment"))


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
