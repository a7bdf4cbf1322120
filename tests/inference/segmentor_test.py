"""`crossearth_jax.load` on real file formats, compared with the golden scores of the reference."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crossearth_jax
from crossearth_jax.config import Config, DataConfig, EvaluateConfig, UserError
from crossearth_jax.convert import read_config
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import parallel
from crossearth_jax.training.weights_file import describe_run
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = Path(__file__).parents[1] / "golden/tiny"
CONFIG = read_config(GOLDEN / "model.json")
NAMES = ["water", "forest", "shrub", "crop", "bare", "snow"]


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete checkpoint, and its trained part and its backbone as separate files."""
    folder = tmp_path_factory.mktemp("released")
    tensors = golden("params")
    trained = {k: v for k, v in tensors.items() if k.startswith(("decode_head.", "backbone.reins."))}
    meta = {"dataset_meta": {"classes": NAMES}}
    write_torch_zip(folder / "full.pth", {"meta": meta, "state_dict": tensors})
    write_torch_zip(folder / "trained.pth", {"state_dict": trained})
    write_torch_zip(folder / "backbone.pth", {k: v for k, v in tensors.items() if k not in trained})
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return crossearth_jax.load(folder / "full.pth", num_classes=6, config=CONFIG)


def test_scores_equal_the_reference(model):
    forward = golden("forward")
    noise = float(json.loads((GOLDEN / "float32_noise.json").read_text("utf-8"))["forward/seg_logits"])
    found = model.scores(np.moveaxis(forward["input"], 1, -1))
    np.testing.assert_allclose(found, np.moveaxis(forward["seg_logits"], 1, -1), rtol=0, atol=5 * noise)


def test_predict_is_the_argmax_of_averaged_windows(model):
    """70 x 50 pixels need two windows along the height and one along the width, padded to 64 with mean colour."""
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 50, 3), dtype=np.uint8)
    filled = np.pad(np.asarray(normalize(jnp.asarray(images))), ((0, 0), (0, 0), (0, 14), (0, 0)))
    total, count = np.zeros((2, 70, 64, 6), np.float64), np.zeros((70, 1, 1))
    for top in (0, 6):
        total[:, top : top + 64] += np.asarray(model.scores(filled[:, top : top + 64]))
        count[top : top + 64] += 1
    expected = (total / count)[:, :, :50]
    top_two = np.sort(expected, axis=-1)[..., -2:]
    clear = top_two[..., 1] - top_two[..., 0] > 1e-4  # in ties floating-point rounding decides
    labels = model.predict(images)
    assert labels.dtype == np.uint8 and labels.shape == (2, 70, 50) and clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])


def test_devices_share_a_batch_and_invalid_pixels_have_the_mean_colour(model):
    windows = model.sliding_windows(batch_size=3)
    assert windows.batch_size == len(jax.local_devices()) == 8
    images = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    valid = np.ones((8, 64, 64), bool)
    valid[2, 10:, :20] = False
    scores = windows.score(images, valid)
    assert len(scores.sharding.device_set) == 8
    normalised = np.where(valid[..., None], normalize(jnp.asarray(images)), 0)
    np.testing.assert_allclose(scores, model.scores(normalised), rtol=1e-5, atol=1e-5)


def test_parameters_are_copied_to_the_devices_once(folder, monkeypatch):
    model = crossearth_jax.load(folder / "full.pth", config=CONFIG)
    copies = []

    def copy(mesh, params):
        copies.append(len(params))
        return copy_to(mesh, params)

    copy_to = parallel.copy_to
    monkeypatch.setattr(parallel, "copy_to", copy)
    first, second = model.sliding_windows(), model.sliding_windows(flips=True)
    assert copies == [len(model.params)] and first is not second


def test_flips_average_the_mirror_images(model):
    images = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    ((_, found),) = model.sliding_windows(flips=True).scores(images)
    normalised = np.asarray(normalize(jnp.asarray(images)))
    flips = (np.s_[:, :, :], np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[:, ::-1, ::-1])
    expected = np.mean([np.asarray(model.scores(normalised[flip]))[flip] for flip in flips], axis=0)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)


def test_descriptors_are_means_over_valid_pixels(model):
    images = np.random.default_rng(3).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    valid = np.zeros((8, 64, 64), bool)
    valid[0], valid[1, :40], valid[2, :31] = True, True, True
    found = []
    model.sliding_windows(observe=found.append).score(images, valid)
    normalised = jnp.where(valid[..., None], normalize(jnp.asarray(images)), 0)
    levels = np.asarray(model.model.features(model.params, normalised).levels[-1])
    rows = np.array([[1, 1, 1, 1], [1, 1, 0.5, 0]])[..., None, None]  # valid share of each row of patches, of 16 pixels
    pooled = (levels[:2] * rows).sum((1, 2)) / rows.sum((1, 2)) / 4
    inside = [np.asarray(normalised)[i][valid[i]] for i in range(2)]
    bands = [np.concatenate([pixels.mean(0), pixels.std(0)]) for pixels in inside]
    np.testing.assert_allclose(found[0][:2], np.concatenate([pooled, bands], axis=1), rtol=1e-4, atol=1e-4)
    assert np.isnan(found[0][2:]).all()  # less than half is valid


def test_sides_that_no_patch_grid_covers(model):
    with pytest.raises(UserError, match="50 x 64; sides must be multiples of 16"):
        model.scores(np.zeros((1, 50, 64, 3), np.float32))


def test_what_a_model_says_of_itself(model):
    assert model.classes == 6 and model.class_names == tuple(NAMES) and model.multiple == 16
    assert (model.window, model.stride) == (64, 43)
    assert len(set(model.palette)) == 6


def test_windows_of_the_published_settings(folder):
    for window, stride in ((512, 341), (1024, 683)):
        loaded = crossearth_jax.load(folder / "full.pth", config=CONFIG, window=window)
        assert (loaded.window, loaded.stride) == (window, stride)


def test_trained_part_needs_its_backbone(folder, model):
    with pytest.raises(UserError, match=r"trained\.pth holds the trained parameters .* but not the frozen backbone"):
        crossearth_jax.load(folder / "trained.pth", config=CONFIG)
    both = crossearth_jax.load(folder / "trained.pth", config=CONFIG, backbone=folder / "backbone.pth")
    assert set(both.params) == set(model.params)
    assert all(np.array_equal(both.params[name], model.params[name]) for name in model.params)
    with pytest.raises(UserError, match="give class_names="):
        _ = both.class_names
    with pytest.raises(UserError, match=r"backbone\.pth holds no head and no reins"):
        crossearth_jax.load(folder / "backbone.pth", config=CONFIG)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_classes": 5}, "has 6 classes, but num_classes=5 was expected"),
        ({"class_names": ["a", "b"]}, "2 class names for 6 classes"),
        ({"class_names": "blue_marble"}, "5 class names for 6 classes"),
        ({"class_names": "red_marble"}, "unknown taxonomy 'red_marble'; expected one of"),
        ({"palette": ((0, 0, 0),)}, "1 colours for 6 classes"),
        ({"config": None}, "configuration"),
    ],
)
def test_what_does_not_fit_the_file(folder, asked, message):
    with pytest.raises(UserError, match=message):
        crossearth_jax.load(folder / "full.pth", **{"config": CONFIG, **asked})


def test_names_and_colours_of_the_caller_win(folder):
    colours = tuple((i, i, i) for i in range(6))
    loaded = crossearth_jax.load(folder / "full.pth", config=CONFIG, class_names=list("abcdef"), palette=colours)
    assert loaded.class_names == tuple("abcdef") and loaded.palette == colours


@pytest.mark.parametrize(("domain", "classes"), [("blue_marble/arid_green", 5), ("blue_marble/unlabelled", 0)])
def test_a_run_names_the_classes_of_its_source_if_it_has_labels(domain, classes):
    config = Config(name="a", data=DataConfig(source=domain), evaluate=EvaluateConfig(window=16, stride=8))
    described = describe_run(config, 7)
    assert (len(described.class_names), len(described.palette)) == (classes, classes)
    assert (described.source, described.window, described.stride) == ("a, step 7", 16, 8)


def test_importing_the_package_is_light():
    program = (
        "import crossearth_jax, sys; assert 'jax' not in sys.modules; crossearth_jax.load; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", program], check=True, timeout=300)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        crossearth_jax.lod  # noqa: B018
