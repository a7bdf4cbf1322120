"""Which parameters a run takes from a weights file, bit for bit, and which keep their initial values."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from crossearth_jax.config import Config, DataConfig, HeadConfig, MeshConfig, MimConfig, TrainConfig, UserError
from crossearth_jax.convert import read_config
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.training.initialise import initial_params
from crossearth_jax.training.program import build_program
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import Description, save_native
from crossearth_jax.weights.reference_names import from_reference
from crossearth_jax.weights.starting import fit, starting_weights
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = Path(__file__).parent.parent / "golden"
CONFIG = read_config(GOLDEN / "tiny/model.json")
CLASS = "head/mask_decoder/class_head/"
CLASS_LAYER = {f"{CLASS}kernel", f"{CLASS}bias"}
MIM = MimConfig(width=32, image_size=64, token_size=64)


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "tiny/params.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def path(tmp_path_factory, reference):
    """Return a complete published file, whose mask token is larger than that of a small model."""
    path = tmp_path_factory.mktemp("released") / "a.pth"
    with np.load(GOLDEN / "train/mim_params.npz") as mim:
        token = np.random.default_rng(0).standard_normal((1, 3, 96, 96), np.float32)
        write_torch_zip(path, {"state_dict": reference | dict(mim) | {"mask_token": token}})
    return path


def test_same_model_is_restored_whole(path, reference):
    params = starting_weights(path, CONFIG)
    expected = from_reference(reference)
    assert set(params) == set(SegmentationModel(CONFIG).shapes())
    assert all(np.array_equal(params[name], expected[name]) for name in params)


def test_other_classes_start_the_class_layer_afresh_and_nothing_else(path, reference):
    config = dataclasses.replace(CONFIG, classes=3)
    params = starting_weights(path, config)
    expected = from_reference(reference)
    assert set(SegmentationModel(config).shapes()) - set(params) == CLASS_LAYER
    assert all(np.array_equal(params[name], expected[name]) for name in params)


def test_the_log_says_what_is_cropped_and_what_starts_afresh(path, caplog):
    with caplog.at_level("INFO", logger="absl"):
        starting_weights(path, dataclasses.replace(CONFIG, classes=3, mim=MIM))
    assert "the pixel mask token of 96 x 96 is cropped to its upper left 64 x 64" in caplog.text
    message = f"the file has 6 classes, the model 3 classes: the class layer ({CLASS}*) keeps its initial values"
    assert message in caplog.text


def test_a_run_for_other_classes_of_the_same_number_starts_the_class_layer_anew(tmp_path, reference, caplog):
    params = from_reference(reference)
    described = Description(model=CONFIG, class_names=tuple("abcdef"), trained_on="letters/latin")
    save_native(tmp_path / "model.safetensors", params, described)
    same = starting_weights(tmp_path, CONFIG, tuple("abcdef"))  # the folder of a run
    assert same.keys() == SegmentationModel(CONFIG).shapes().keys()
    with caplog.at_level("INFO", logger="absl"):
        other = starting_weights(tmp_path / "model.safetensors", CONFIG, tuple("abcdeg"))
    assert same.keys() - other.keys() == CLASS_LAYER
    assert all(np.array_equal(other[name], params[name]) for name in other)
    lines = [record.getMessage() for record in caplog.records if "keeps its initial values" in record.getMessage()]
    assert lines == [
        "the file has 6 classes (a, b, c, d, e, f), the model 6 classes (a, b, c, d, e, g): "
        f"the class layer ({CLASS}*) keeps its initial values, the rest is restored"
    ]
    published = dataclasses.replace(described, trained_on="")  # its class names may be spelt differently
    save_native(tmp_path / "published.safetensors", params, published)
    assert starting_weights(tmp_path / "published.safetensors", CONFIG, tuple("abcdeg")).keys() == same.keys()


def test_adapters_without_their_backbone_are_no_start(tmp_path, reference):
    trained = {k: v for k, v in reference.items() if k.startswith(("decode_head.", "backbone.reins."))}
    write_torch_zip(tmp_path / "trained.pth", {"state_dict": trained})
    with pytest.raises(UserError, match=r"trained\.pth holds Reins and head but not the backbone .* --backbone="):
        starting_weights(tmp_path / "trained.pth", CONFIG)


def test_mask_token_is_cropped_to_its_upper_left_corner(path):
    config = dataclasses.replace(CONFIG, mim=MIM)
    weights = load_weights(path, config=config)
    params, report = fit(weights, config)
    assert report.cropped == ("mim/mask_token",) and not report.fresh and not report.reinitialised
    np.testing.assert_array_equal(params["mim/mask_token"], weights.params["mim/mask_token"][:64, :64])
    assert set(report.restored) | set(report.cropped) == set(SegmentationModel(config).shapes())
    larger = dataclasses.replace(CONFIG, mim=dataclasses.replace(MIM, token_size=128))
    with pytest.raises(UserError, match="mask token is 96 x 96, the model's 128 x 128"):
        starting_weights(path, larger)


def test_report_names_what_the_file_lacks_and_what_the_model_lacks(path, reference, tmp_path):
    _, report = fit(load_weights(path, config=CONFIG), CONFIG)
    assert {name.split("/")[0] for name in report.unused} == {"mim", "extra"}
    write_torch_zip(tmp_path / "b.pth", reference)
    config = dataclasses.replace(CONFIG, mim=MIM)
    _, report = fit(load_weights(tmp_path / "b.pth", config=config), config)
    assert {name.split("/")[0] for name in report.fresh} == {"mim"} and len(report.fresh) == 17


def test_backbone_alone_is_a_start(tmp_path, reference):
    trained = ("decode_head.", "backbone.reins.")
    backbone = {k.removeprefix("backbone."): v for k, v in reference.items() if not k.startswith(trained)}
    write_torch_zip(tmp_path / "b.pth", backbone)
    params = starting_weights(tmp_path / "b.pth", CONFIG)
    assert {name.split("/")[0] for name in params} == {"backbone"} and len(params) == 18


def test_the_final_norm_of_the_backbone_starts_that_of_eomt(tmp_path, reference):
    trained = ("decode_head.", "backbone.reins.")
    backbone = {k.removeprefix("backbone."): v for k, v in reference.items() if not k.startswith(trained)}
    norm = {"norm.weight": np.arange(64, dtype=np.float32), "norm.bias": np.ones(64, np.float32)}
    write_torch_zip(tmp_path / "b.pth", backbone | norm)
    head = HeadConfig(kind="eomt", last_blocks=1)
    params = starting_weights(tmp_path / "b.pth", dataclasses.replace(CONFIG, head=head))
    assert {name for name in params if name.startswith("head/")} == {"head/norm/scale", "head/norm/bias"}
    np.testing.assert_array_equal(params["head/norm/scale"], norm["norm.weight"])
    np.testing.assert_array_equal(params["head/norm/bias"], norm["norm.bias"])


def test_a_run_starts_from_the_file_with_a_fresh_optimizer(path, reference):
    """With other classes the frozen parameters equal the file bit for bit, and only the class layer is drawn."""
    model = dataclasses.replace(CONFIG, classes=3, mim=MIM)
    config = Config(name="a", model=model, data=DataConfig(batch_size=1), train=TrainConfig(init_from=str(path)))
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = build_program(config, mesh)
        trainable, frozen = initial_params(program)
        state = program.create_state(trainable)
    expected = from_reference(reference)
    assert {name.split("/")[0] for name in frozen} == {"backbone"} and len(frozen) == 18
    for name, value in (frozen | state.trainable).items():
        if name in CLASS_LAYER:
            assert value.shape[-1] == 4 and np.abs(value).max() <= 32**-0.5
        elif name in expected:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
