"""Every tensor of the reference has one counterpart here, and conversion there and back changes no bit."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from crossearth_jax.config import MimConfig, ModelConfig, UserError
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.weights.reference_names import from_reference, to_reference

GOLDEN = Path(__file__).parent.parent / "golden"


def published():
    """Return a small checkpoint with everything that published ones hold."""
    with np.load(GOLDEN / "tiny/params.npz") as model, np.load(GOLDEN / "train/mim_params.npz") as mim:
        tensors = dict(model) | dict(mim)
    random = np.random.default_rng(0)

    def add(name, *shape):
        tensors[name] = random.standard_normal(shape, np.float32)

    add("mask_token", 1, 3, 8, 8)
    add("task_head.LN.weight", 32)
    add("task_head.MLP.weight", 32, 128, 3, 3)
    for index, (inputs, outputs) in enumerate([(3, 8), (8, 16), (16, 64)]):
        add(f"backbone.reins.high_extractor.{2 * index}.weight", outputs, inputs, 3, 3)
        add(f"backbone.reins.high_extractor.{2 * index}.bias", outputs)
    add("backbone.reins.high_extractor.7.weight", 64)
    add("augmentor.ghiasi.layers.0.conv.weight", 32, 3, 9, 9)
    add("augmentor.stylePredictor.fc.weight", 100, 768)
    tensors["augmentor.stylePredictor.Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return published()


def same(a, b):
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def test_round_trip_is_bit_exact(tensors):
    assert same(to_reference(from_reference(tensors)), tensors)


def test_layouts_by_hand(tensors):
    params = from_reference(tensors)
    linear = tensors["backbone.blocks.2.mlp.fc1.weight"]
    np.testing.assert_array_equal(params["backbone/blocks/mlp/fc1/kernel"][2], linear.T)
    conv = tensors["decode_head.pixel_decoder.output_convs.0.conv.weight"]
    kernel = params["head/pixel_decoder/output_conv/conv/kernel"]
    assert kernel.shape == (3, 3, 32, 32) and kernel[0, 2, 5, 7] == conv[7, 5, 0, 2]
    packed = tensors["decode_head.transformer_decoder.layers.1.cross_attn.attn.in_proj_weight"]
    for i, part in enumerate(("query", "key", "value")):
        name = f"head/mask_decoder/layers/1/cross_attention/{part}/kernel"
        np.testing.assert_array_equal(params[name], packed[32 * i : 32 * (i + 1)].T)
    token = tensors["mask_token"]
    assert params["mim/mask_token"].shape == (8, 8, 3) and params["mim/mask_token"][1, 2, 0] == token[0, 0, 1, 2]
    extractor = tensors["backbone.reins.high_extractor.2.weight"]
    assert params["gse/2/kernel"][0, 1, 3, 9] == extractor[9, 3, 0, 1]


def test_what_is_not_ours_is_carried_as_it_is(tensors):
    extra = {k.removeprefix("extra/") for k in from_reference(tensors) if k.startswith("extra/")}
    assert extra == {
        "backbone.mask_token",
        "backbone.norm.weight",
        "backbone.norm.bias",
        "task_head.LN.weight",
        "task_head.MLP.weight",
        "backbone.reins.high_extractor.7.weight",
        "augmentor.ghiasi.layers.0.conv.weight",
        "augmentor.stylePredictor.fc.weight",
        "augmentor.stylePredictor.Mixed_5b.branch1x1.bn.num_batches_tracked",
    }


def test_training_only_modules_are_known_by_what_they_hold(tensors):
    renamed = {
        "module." + k.replace("task_head.", "segmentor.aux.").replace("augmentor.", "segmentor.styler."): v
        for k, v in tensors.items()
    }
    assert same(from_reference(renamed), from_reference(tensors))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(tensors, dtype):
    name = "decode_head.cls_embed.weight"
    params = from_reference(tensors | {name: tensors[name].astype(dtype)})
    kernel = params["head/mask_decoder/class_head/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors[name].astype(dtype).astype(np.float32).T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.query_embed.weight": np.ones((8, 32), np.float32)}, r"1 of 2\d\d tensors.*query_embed"),
        ({"roi_head.weight": np.ones(3, np.float32)}, "roi_head.weight"),
        ({"backbone.blocks.1.norm1.bias": None}, "layers 0, 2, 3; expected 0, 1, 2"),
        ({"backbone.blocks.1.norm1.bias": np.ones(63, np.float32)}, "another shape than"),
        ({"backbone.cls_token": np.ones((1, 64), np.float32)}, r"backbone.cls_token has shape \(1, 64\)"),
        ({"backbone.blocks.0.attn.proj.weight": np.ones(64, np.float32)}, "attn.proj.weight has shape"),
        (
            {"decode_head.transformer_decoder.layers.0.self_attn.attn.in_proj_bias": np.ones(95, np.float32)},
            "in_proj_bias has shape",
        ),
        ({"backbone.reins.scale": np.array(1)}, "backbone.reins.scale holds int64 numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tensors, change, message):
    changed = {k: v for k, v in (tensors | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        from_reference(changed)


def test_full_size_names_and_shapes_of_the_reconstruction_head():
    golden = json.loads((GOLDEN / "train/mim_shapes_full.json").read_text("utf-8"))["shapes"]
    specs = SegmentationModel(ModelConfig(mim=MimConfig())).shapes()
    ours = {name: np.broadcast_to(np.float32(0), spec.shape) for name, spec in specs.items() if name[:4] == "mim/"}
    found = {name: list(x.shape) for name, x in to_reference(ours).items()}
    assert found.pop("mask_token") == [1, 3, 1024, 1024]
    unused = ("LN.", "MLP.")  # the reference's code does not use them either
    assert found == {f"task_head.{name}": shape for name, shape in golden.items() if not name.startswith(unused)}


def test_way_back_refuses_what_has_no_name(tensors):
    params = from_reference(tensors)
    with pytest.raises(UserError, match="mask_decoder/queries"):
        to_reference(params | {"head/mask_decoder/queries": np.ones((8, 32), np.float32)})
    del params["head/mask_decoder/layers/0/self_attention/key/bias"]
    with pytest.raises(UserError, match="self_attention/key/bias is missing beside"):
        to_reference(params)
