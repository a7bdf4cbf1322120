"""Weights files of every kind give the same parameters."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from crossearth_jax.config import UserError
from crossearth_jax.convert import read_config
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import save_native
from crossearth_jax.weights.reference_names import from_reference
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = Path(__file__).parent.parent / "golden/tiny"
CONFIG = read_config(GOLDEN / "model.json")
NAMES = ("water", "forest", "shrub", "crop", "bare", "snow")


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "params.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def params(reference):
    return from_reference(reference)


def is_trained(name):
    return name.startswith(("decode_head.", "backbone.reins."))


def same(a, b):
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_full_checkpoint_with_class_names(tmp_path, reference, params):
    palette = [[i, 2 * i, 3 * i] for i in range(6)]
    meta = {"dataset_meta": {"classes": NAMES, "palette": palette}, "epoch": 3}
    write_torch_zip(tmp_path / "a.pth", {"meta": meta, "state_dict": reference, "optimizer": {"lr": 1.0}})
    weights = load_weights(tmp_path / "a.pth", config=CONFIG)
    assert same(weights.params, params)
    described = weights.description
    assert described.class_names == NAMES and described.palette == tuple(map(tuple, palette))
    assert described.model == CONFIG and described.source == "a.pth"
    assert weights.parts() == {"backbone": 18, "reins": 11, "head": 128, "extra": 3}


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_under_any_key_and_in_safetensors_of_any_name(tmp_path, reference, params, key):
    write_torch_zip(tmp_path / "a.pth", reference if key is None else {key: reference})
    safetensors.numpy.save_file(reference, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        assert same(load_weights(tmp_path / name, config=CONFIG).params, params)


def test_trained_part_and_backbone_in_two_files(tmp_path, reference, params):
    trained = {name: x for name, x in reference.items() if is_trained(name)}
    # The reference's converter writes the backbone without the prefix.
    backbone = {name.removeprefix("backbone."): x for name, x in reference.items() if not is_trained(name)}
    write_torch_zip(tmp_path / "trained.pth", {"state_dict": trained})
    write_torch_zip(tmp_path / "backbone.pth", backbone)
    both = load_weights(tmp_path / "trained.pth", config=CONFIG, backbone=tmp_path / "backbone.pth")
    assert same(both.params, params)
    alone = load_weights(tmp_path / "trained.pth", config=CONFIG)
    assert set(alone.parts()) == {"reins", "head"}
    assert set(load_weights(tmp_path / "backbone.pth", config=CONFIG).parts()) == {"backbone", "extra"}
    with pytest.raises(UserError, match="holds no backbone"):
        load_weights(tmp_path / "trained.pth", config=CONFIG, backbone=tmp_path / "trained.pth")
    write_torch_zip(tmp_path / "full.pth", reference)
    with pytest.raises(UserError, match="already has a backbone; leave out"):
        load_weights(tmp_path / "full.pth", config=CONFIG, backbone=tmp_path / "backbone.pth")


def test_our_own_file_needs_no_configuration(tmp_path, reference, params):
    write_torch_zip(tmp_path / "a.pth", {"state_dict": reference})
    weights = load_weights(tmp_path / "a.pth", config=CONFIG)
    save_native(tmp_path / "a.safetensors", weights.params, weights.description)
    again = load_weights(tmp_path / "a.safetensors")
    assert same(again.params, params) and again.description == weights.description


def test_number_of_classes_is_read_from_the_file(tmp_path, reference):
    change = {f"decode_head.cls_embed.{n}": reference[f"decode_head.cls_embed.{n}"][:4] for n in ("weight", "bias")}
    write_torch_zip(tmp_path / "a.pth", {"meta": {"classes": NAMES}, "state_dict": reference | change})
    described = load_weights(tmp_path / "a.pth", config=CONFIG).description
    assert described.model.classes == 3
    assert described.class_names == ()  # the file has six names, but the head has three classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.level_embed.weight": None}, "1 parameters are missing: head/mask_decoder/level_embed"),
        ({"decode_head.surprise": np.ones(2, np.float32)}, "decode_head.surprise"),
        ({"decode_head.level_embed.weight": np.ones((3, 33), np.float32)}, r"level_embed has shape \(3, 33\)"),
        ({"backbone.pos_embed": np.ones((1, 26, 64), np.float32)}, "for images of 80 x 80, not 64 x 64"),
    ],
)
def test_nothing_may_be_missing_left_over_or_of_another_shape(tmp_path, reference, change, message):
    changed = {k: v for k, v in (reference | change).items() if v is not None}
    write_torch_zip(tmp_path / "a.pth", changed)
    with pytest.raises(UserError, match=message) as error:
        load_weights(tmp_path / "a.pth", config=CONFIG)
    assert "a.pth" in str(error.value)


def test_what_is_named_is_ignored(tmp_path, reference, params):
    write_torch_zip(tmp_path / "a.pth", reference | {"ema.step": np.ones(1, np.float32)})
    with pytest.raises(UserError, match=r"ema\.step"):
        load_weights(tmp_path / "a.pth", config=CONFIG)
    assert same(load_weights(tmp_path / "a.pth", config=CONFIG, ignore=r"ema\..*").params, params)


def test_other_models_are_refused(tmp_path):
    write_torch_zip(tmp_path / "a.pth", {"layer4.0.conv1.weight": np.ones((2, 2, 1, 1), np.float32)})
    with pytest.raises(UserError, match=r"a\.pth: 1 of 1 tensors are not parameters of CrossEarth: layer4"):
        load_weights(tmp_path / "a.pth")
