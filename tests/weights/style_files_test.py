"""Published files of the style network: names, folding of batch norms, both kinds of file, and errors."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from einops import rearrange

from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.weights.style_files import checked, dequantise, from_torch, load_style, style_digest
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "train"
INCEPTION = StyleNetwork("inception")


def test_golden_weights_are_filled_by_the_rule(published_style):
    recorded = json.loads((GOLDEN / "style_weights_check.json").read_text())
    for name, check in recorded.items():
        np.testing.assert_array_equal(published_style[name].reshape(-1)[:3], np.float32(check["first"]), name)
        assert zlib.crc32(published_style[name].astype("<f4").tobytes()) == check["crc32"], name


def test_every_published_tensor_has_a_place(published_style):
    params, unused = from_torch(published_style)
    assert unused == ()
    assert params.keys() == INCEPTION.shapes().keys()
    scale = published_style["ghiasi.layers.4.fc_gamma2.weight"]
    np.testing.assert_array_equal(params["style/transformer/residual/1/conv2/scale/kernel"], scale.T)
    shift = published_style["ghiasi.layers.9.fc_beta.bias"]
    np.testing.assert_array_equal(params["style/transformer/expand/1/shift/bias"], shift)


def test_folded_batch_norm_equals_the_norm_after_the_convolution(published_style):
    params, _ = from_torch(published_style)
    module = "stylePredictor.Mixed_6c.branch7x7_2"
    x = np.random.default_rng(0).normal(size=160 * 7)
    weight = published_style[f"{module}.conv.weight"].astype(np.float64)
    mean, variance, gain, bias = (
        published_style[f"{module}.bn.{name}"].astype(np.float64)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    expected = (rearrange(weight, "o i 1 w -> o (w i)") @ x - mean) / np.sqrt(variance + 1e-3) * gain + bias
    kernel = params["style/predictor/Mixed_6c/branch7x7_2/conv/kernel"]
    found = x @ rearrange(kernel, "1 w i o -> (w i) o") + params["style/predictor/Mixed_6c/branch7x7_2/conv/bias"]
    np.testing.assert_allclose(found, expected, atol=1e-4)  # kernel and bias are rounded to float32


def test_reads_legacy_folder_and_crossearth_checkpoint_alike(published_style, tmp_path):
    parts = {
        prefix: {name.removeprefix(f"{prefix}."): t for name, t in published_style.items() if name.startswith(prefix)}
        for prefix in ("ghiasi", "stylePredictor")
    }
    extra = {"Mixed_7a.branch3x3_1.conv.weight": np.zeros((192, 768, 1, 1), np.float32)}  # in full Inceptions
    write_torch_zip(tmp_path / "checkpoint_transformer.pth", {"state_dict_ghiasi": parts["ghiasi"]})
    write_torch_zip(
        tmp_path / "checkpoint_stylepredictor.pth", {"state_dict_stylepredictor": parts["stylePredictor"] | extra}
    )
    state = {f"augmentor.{name}": tensor for name, tensor in published_style.items()}
    backbone = {"backbone.cls_token": np.zeros((1, 1, 4), np.float32)}
    write_torch_zip(tmp_path / "crossearth.pth", {"state_dict": state | backbone})

    legacy, full = (load_style(INCEPTION, tmp_path / name) for name in (".", "crossearth.pth"))
    assert style_digest(legacy) == style_digest(full)
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in full.items()}, tmp_path / "ours.safetensors")
    # Names in a converted checkpoint.
    carried = {f"extra/{name}": np.asarray(tensor) for name, tensor in state.items()}
    safetensors.numpy.save_file(carried, tmp_path / "converted.safetensors")
    for name in ("ours.safetensors", "converted.safetensors"):
        assert style_digest(load_style(INCEPTION, tmp_path / name)) == style_digest(full)


def test_says_what_does_not_fit(published_style, tmp_path):
    with pytest.raises(UserError, match="not shipped; name its weights"):
        load_style(INCEPTION)
    params, _ = from_torch(published_style)
    with pytest.raises(UserError, match=r"file\.pth does not hold the 'mobile' style network: .* expected"):
        checked(StyleNetwork("mobile"), params, "file.pth")
    del params["style/predictor/fc/bias"]
    with pytest.raises(UserError, match=r"1 of 226 parameters do not fit, e\.g\. style/predictor/fc/bias is missing"):
        checked(INCEPTION, params, "file.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="expected a safetensors file"):
        load_style(StyleNetwork("mobile"), tmp_path / "broken.safetensors")


def test_unused_tensors_are_named(published_style):
    extra = np.zeros(3, np.float32)
    _, unused = from_torch(published_style | {"stylePredictor.Mixed_7a.branch.conv.bias": extra, "ghiasi.extra": extra})
    assert unused == ("stylePredictor.Mixed_7a.branch.conv.bias", "ghiasi.extra")


def test_dequantise_multiplies_by_the_last_axis_and_keeps_floats():
    tensors = {
        "a": np.array([[-128, 127]], np.int8),
        "a.scale": np.array([0.5, 0.25], np.float32),
        "b": np.array([1.5], np.float32),
    }
    found = dequantise(tensors)
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], [[-64, 31.75]])
    np.testing.assert_array_equal(found["b"], [1.5])


def test_digest_sees_values_names_and_shapes_of_the_style_network_only():
    params = {"style/a": jnp.arange(6.0), "backbone/b": jnp.zeros(2)}
    digest = style_digest(params)
    assert digest == style_digest({"style/a": jnp.arange(6.0)})
    assert digest != style_digest({"style/a": jnp.arange(6.0).reshape(2, 3)})
    assert digest != style_digest({"style/a": jnp.arange(6.0).at[0].set(1)})
    assert digest != style_digest({"style/c": jnp.arange(6.0)})


def test_initial_parameters_load_into_the_network():
    params = jax.eval_shape(StyleNetwork("mobile").init, jax.random.key(0))
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
        name: (p.shape, p.dtype) for name, p in StyleNetwork("mobile").shapes().items()
    }


def test_one_of_the_two_files_stands_for_both_or_says_which_is_missing(published_style, tmp_path):
    parts = {"ghiasi": "checkpoint_transformer.pth", "stylePredictor": "checkpoint_stylepredictor.pth"}
    for prefix, name in parts.items():
        tensors = {k.removeprefix(f"{prefix}."): v for k, v in published_style.items() if k.startswith(prefix)}
        write_torch_zip(tmp_path / name, {f"state_dict_{prefix.lower()}": tensors})
    both = style_digest(load_style(INCEPTION, tmp_path))
    assert {style_digest(load_style(INCEPTION, tmp_path / name)) for name in parts.values()} == {both}
    (tmp_path / "checkpoint_stylepredictor.pth").unlink()
    for path in (tmp_path, tmp_path / "checkpoint_transformer.pth"):
        with pytest.raises(UserError, match=r"one half .*, and checkpoint_stylepredictor\.pth is missing"):
            load_style(INCEPTION, path)
