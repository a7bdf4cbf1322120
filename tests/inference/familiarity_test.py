"""The distance against its formula, and real scenes: familiar ones of the source, and those of other sensors."""

import base64
import dataclasses
import json

import jax
import numpy as np
import pytest
import rasterio
from sklearn.covariance import LedoitWolf

from crossearth_jax import predict
from crossearth_jax.inference import familiarity
from crossearth_jax.inference.calibration import calibrated
from crossearth_jax.inference.familiarity import Familiarity, decoded, distances, fit_reference
from crossearth_jax.inference.segmentor import load
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.training.weights_file import export_model
from crossearth_jax.weights.native import Reference, read_description, save_native

TAGS = {"UNFAMILIAR_PERCENT", "MEDIAN_DISTANCE", "DISTANCE_LIMIT"}


def descriptors(count, size, seed):
    """Return correlated descriptors whose components have different scales."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(size, size))
    return (random.normal(size=(count, size)) @ mixing * np.arange(1, size + 1) + 5).astype(np.float32)


@pytest.mark.parametrize("size", [6, familiarity.RANK + 8])
def test_distance_is_that_of_mahalanobis(size):
    training, held_out = descriptors(400, size, 1), descriptors(100, size, 2)
    reference = fit_reference(training, held_out)
    mean, deviation = training.mean(0), training.std(0)
    eigenvalues, vectors = np.linalg.eigh(LedoitWolf().fit((training - mean) / deviation).covariance_)
    if size > familiarity.RANK:
        eigenvalues[: -familiarity.RANK] = eigenvalues[: -familiarity.RANK].mean()
    along = (held_out - mean) / deviation @ vectors
    expected = np.sqrt((along**2 / eigenvalues).mean(1))
    np.testing.assert_allclose(distances(decoded(reference), held_out), expected, rtol=1e-3)
    assert reference.limit == pytest.approx(np.percentile(expected, 99), rel=1e-3)


def test_windows_without_a_descriptor_are_left_out():
    training, held_out = descriptors(50, 4, 1), descriptors(20, 4, 2)
    gaps = np.full((3, 4), np.nan, np.float32)
    assert fit_reference(np.concatenate([gaps, training]), np.concatenate([held_out, gaps])) == fit_reference(
        training, held_out
    )
    assert fit_reference(training[:1], held_out) is None and fit_reference(training, gaps) is None


@pytest.mark.parametrize(("far", "warned"), [(1, False), (2, True)])
def test_a_tenth_of_the_windows_makes_a_scene_unfamiliar(far, warned, caplog):
    rows = np.array([[1, 1], [0.5, 0.25]], np.float32)  # mean, scale
    familiar = Familiarity(Reference(size=2, rows=base64.b64encode(rows.tobytes()).decode(), limit=2.0))
    near, distant = [1.0, 5.0], [1.0, 21.0]  # distances sqrt(1 / 2) and sqrt(25 / 2)
    windows = np.array([near] * (19 - far) + [distant] * far + [[np.nan, np.nan]], np.float32)
    familiar.observe(jax.numpy.asarray(windows[:7]))
    familiar.observe(jax.numpy.asarray(windows[7:]))
    found = familiar.tags("a.tif")
    assert found == {
        "UNFAMILIAR_PERCENT": f"{100 * far / 19:.1f}", "MEDIAN_DISTANCE": "0.707", "DISTANCE_LIMIT": "2.000",
    }  # fmt: skip
    lines = [record.getMessage() for record in caplog.records if "unfamiliar ground" in record.getMessage()]
    expected = (
        "a.tif: unfamiliar ground: 11 % of the windows differ more from the training images than 99 % of the held-out "
        "windows do (median distance 0.71, limit 2.00); check the map against reference data"
    )
    assert lines == [expected] * warned
    familiar.clear()
    familiar.observe(jax.numpy.full((2, 2), np.nan))
    assert familiar.tags("a.tif") == {}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """Return the folder of a run with random parameters, whose source was measured as after a training."""
    folder = tmp_path_factory.mktemp("run")
    model = SegmentationModel(tiny_config.model)
    export_model(folder, tiny_config, jax.jit(model.init)(jax.random.key(0)), 3)
    calibrated(tiny_config, folder / "model.safetensors", load(folder))
    return folder


def test_windows_of_the_source_are_familiar_and_other_sensors_are_not(run, tmp_path, caplog):
    """Central Europe in the season of the training; infrared bands of Sentinel-2; an aerial photograph."""
    scenes = {
        "earth_green_season.vrt": ["--bounds=5,44,20,52"],
        "sentinel2_virginia.tif": ["--bands=nir,red,green", "--range=0,3000"],
        "neon_osbs_029.tif": [],
    }
    shares, out = [], tmp_path / "map.tif"
    for scene, options in scenes.items():
        caplog.clear()
        predict.main([f"--checkpoint={run}", f"data/scenes/{scene}", f"--out={out}", "--batch_size=16", *options])
        metadata = json.loads(out.with_suffix(".json").read_text())["metadata"]
        with rasterio.open(out) as dataset:
            assert {name: dataset.tags()[name] for name in TAGS} == {name: metadata[name] for name in TAGS}
        shares.append(float(metadata["UNFAMILIAR_PERCENT"]))
        warned = [record for record in caplog.records if "unfamiliar ground" in record.getMessage()]
        assert len(warned) == (shares[-1] >= 10)
    earth, sentinel, neon = shares
    assert earth < 10 < sentinel < 50 < neon


def test_without_a_reference_nothing_is_said(run, tmp_path, caplog):
    """As for published checkpoints, and for runs of earlier versions."""
    segmentor = load(run)
    save_native(
        tmp_path / "x.safetensors", segmentor.params, dataclasses.replace(segmentor.description, reference=None)
    )
    predict.main(
        [f"--checkpoint={tmp_path}/x.safetensors", "data/scenes/neon_osbs_029.tif", f"--out={tmp_path}/map.tif"]
    )
    assert not TAGS & json.loads((tmp_path / "map.json").read_text())["metadata"].keys()
    assert "unfamiliar" not in caplog.text
    assert read_description(run / "model.safetensors").reference is not None
