"""The convert command: conversion in both directions without a changed bit, and one line for every user error."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from crossearth_jax import convert
from crossearth_jax.config import UserError
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.runtime import command
from crossearth_jax.weights.load import load_weights
from crossearth_jax.weights.native import digest
from crossearth_jax.weights.style_files import load_style, style_digest
from crossearth_jax.weights.torch_file import read_torch
from crossearth_jax.weights.torch_writer import write_torch_zip

GOLDEN = Path(__file__).parent / "golden/tiny"
MODEL = f"--config={GOLDEN / 'model.json'}"


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "params.npz") as file:
        return dict(file)


@pytest.fixture
def checkpoint(tmp_path, reference):
    meta = {"dataset_meta": {"classes": tuple("abcdef"), "palette": [[i, i, i] for i in range(6)]}}
    write_torch_zip(tmp_path / "a.pth", {"meta": meta, "state_dict": reference})
    return tmp_path / "a.pth"


def test_there_and_back(tmp_path, checkpoint, reference, capsys, caplog):
    ours, back, plain = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "b.safetensors"
    with caplog.at_level("INFO", logger="absl"):
        convert.main([str(checkpoint), str(ours), MODEL])
    assert caplog.text.count("191/191 tensors in 0:00:0") == 1  # 194 without the three that have no effect
    weights = load_weights(ours)
    assert capsys.readouterr().out == f"{ours}: 160 arrays, 350,120 numbers, sha256 {digest(weights.params)}\n"

    convert.main([str(ours), str(back), "--to=torch"])
    file = read_torch(back)
    assert file.content["meta"] == {
        "dataset_meta": {"classes": tuple("abcdef"), "palette": [[i, i, i] for i in range(6)]}
    }
    found = {name: file.array(tensor) for name, tensor in file.content["state_dict"].items()}
    convert.main([str(ours), str(plain), "--to=torch"])
    for tensors in (found, safetensors.numpy.load_file(plain)):
        assert set(tensors) == set(reference)
        for name, tensor in reference.items():
            assert tensors[name].dtype == tensor.dtype and np.array_equal(tensors[name], tensor), name


def test_configuration_of_a_run_will_do(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "x", "model": json.loads((GOLDEN / "model.json").read_text("utf-8"))}))
    assert convert.read_config(config) == convert.read_config(GOLDEN / "model.json")
    for text, message in (
        ("[1]", "not hold a JSON object"),
        ("{", "cannot read"),
        ('{"model": {"clases": 2}}', "classes"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            convert.read_config(config)


def test_patches_of_14_are_kept_on_request(tmp_path):
    shapes = {"patch_embed.proj.weight": (384, 3, 14, 14), "pos_embed": (1, 1370, 384), "cls_token": (1, 1, 384)}
    linear = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1, 384), "mlp.fc2": (384, 1)}
    vectors = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")
    shapes["patch_embed.proj.bias"] = (384,)
    for i in range(4):
        shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"blocks.{i}.{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"blocks.{i}.{name}": (384,) for name in vectors}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "dinov2.safetensors")
    convert.main([str(tmp_path / "dinov2.safetensors"), str(tmp_path / "out.safetensors"), "--patch_size=14"])
    vit = load_weights(tmp_path / "out.safetensors").description.model.vit
    assert (vit.patch_size, vit.image_size, vit.position) == (14, 518, "table")


def test_style_network_of_two_files(tmp_path, published_style):
    for part, name in (("ghiasi", "transformer"), ("stylePredictor", "stylepredictor")):
        tensors = {k.removeprefix(f"{part}."): v for k, v in published_style.items() if k.startswith(part)}
        write_torch_zip(tmp_path / f"checkpoint_{name}.pth", {f"state_dict_{part.lower()}": tensors})
    convert.main([str(tmp_path), str(tmp_path / "style.safetensors")])
    network = StyleNetwork("inception")
    assert style_digest(load_style(network, tmp_path / "style.safetensors")) == style_digest(
        load_style(network, tmp_path)
    )
    with pytest.raises(UserError, match="leave out --to=torch"):
        convert.main([str(tmp_path), str(tmp_path / "style.pth"), "--to=torch"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.pth", "out.safetensors"], "no.pth does not exist"),
        (["a.pth", "out.pth"], "out.pth ends in '.pth', expected .safetensors for --to=native"),
        (["a.pth", "out.bin", "--to=torch"], "expected .pth or .safetensors"),
        (["a.pth", "a.pth", "--to=torch"], "a.pth is the input file"),
        (["a.pth", "out.safetensors"], "configuration"),
        (["a.pth", "out.safetensors", MODEL, "--image_size=128"], "not 128 x 128"),
        (["a.pth", "no/out.safetensors", MODEL], "cannot write no/out.safetensors: No such file or directory"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(checkpoint, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(SystemExit) as stop:
        command.run(convert.main, arguments)
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert [entry.name for entry in checkpoint.parent.iterdir()] == ["a.pth"]


def test_one_style_file_converts_beside_the_other_and_else_both_are_asked_for(tmp_path, published_style):
    for part, name in (("ghiasi", "transformer"), ("stylePredictor", "stylepredictor")):
        tensors = {k.removeprefix(f"{part}."): v for k, v in published_style.items() if k.startswith(part)}
        write_torch_zip(tmp_path / f"checkpoint_{name}.pth", {f"state_dict_{part.lower()}": tensors})
    convert.main([str(tmp_path / "checkpoint_transformer.pth"), str(tmp_path / "style.safetensors")])
    network = StyleNetwork("inception")
    assert style_digest(load_style(network, tmp_path / "style.safetensors")) == style_digest(
        load_style(network, tmp_path)
    )
    (tmp_path / "checkpoint_stylepredictor.pth").rename(tmp_path / "renamed.pth")
    for name in ("checkpoint_transformer.pth", "renamed.pth"):
        with pytest.raises(UserError, match=r"checkpoint_transformer\.pth and checkpoint_stylepredictor\.pth"):
            convert.main([str(tmp_path / name), str(tmp_path / "other.safetensors")])
