"""Our own files: loading returns what was saved, bit for bit, and equal weights give identical files."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from crossearth_jax.config import MimConfig, ModelConfig, UserError
from crossearth_jax.weights.files import read_tensors
from crossearth_jax.weights.native import FORMAT, Description, Reference, describe, digest, is_native, save_native

DESCRIPTION = Description(
    model=ModelConfig(classes=2, reins=None, mim=MimConfig(width=8)),
    class_names=("Küste", "sea"),
    palette=((0, 1, 2), (253, 254, 255)),
    source="a.pth",
    reference=Reference(size=2, rows="AACAPwAAAEA=", limit=1.25),
)


def params():
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "backbone/kernel": matrix,
        "backbone/transposed": matrix.T,
        "reins/scale": np.array(0.5, np.float32),
        "extra/backbone.mask_token": matrix.astype(ml_dtypes.bfloat16),
        "extra/counts": np.array(7),
    }


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    save_native(path, params(), DESCRIPTION)
    file = read_tensors(path)
    assert is_native(file.metadata) and describe(file.metadata) == DESCRIPTION
    assert set(file.tensors) == set(params())
    for name, array in params().items():
        found = file.tensors[name]
        assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array), name


def test_same_weights_give_the_same_bytes(tmp_path):
    for name, content in (("a", params()), ("b", dict(reversed(params().items())))):
        save_native(tmp_path / name, content, DESCRIPTION)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_others_may_read_the_file_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    save_native(tmp_path / "a", params(), DESCRIPTION)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_digest_is_of_names_shapes_types_and_values():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    assert digest(base) == digest(dict(reversed(base.items())))
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].T, "b": base["b"]},
        {"a": base["a"].astype(np.int32), "b": base["b"]},
        {"a": base["a"] + np.float32(1e-7), "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({digest(one) for one in [base, *others]}) == 6
    assert digest(base, "a") == digest({"a": base["a"]}) and digest(base, "x") == ""


def test_description_in_the_file_is_readable(tmp_path):
    save_native(tmp_path / "x", params(), DESCRIPTION)
    content = json.loads(read_tensors(tmp_path / "x").metadata[FORMAT])
    assert content["normalization"]["order"] == "RGB"
    np.testing.assert_allclose(content["normalization"]["mean"], [123.675, 116.28, 103.53], rtol=1e-6)
    assert content["backbone_sha256"] == digest(params(), "backbone/") and content["model"]["classes"] == 2


def test_newer_and_damaged_descriptions(tmp_path):
    save_native(tmp_path / "x", params(), DESCRIPTION)
    content = json.loads(read_tensors(tmp_path / "x").metadata[FORMAT])
    with pytest.raises(UserError, match="format version 99"):
        describe({FORMAT: json.dumps(content | {"version": 99})})
    for damage in ("{", "[]", "{}", json.dumps(content | {"palette": [1]}), json.dumps(content | {"model": 3})):
        with pytest.raises(UserError, match="damaged"):
            describe({FORMAT: damage})
    with pytest.raises(UserError, match="unknown config key"):
        describe({FORMAT: json.dumps(content | {"model": {"clases": 3}})})


def test_broken_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_native(path, params(), DESCRIPTION)
    whole = path.read_bytes()
    for cut in (9, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="safetensors"):
            read_tensors(path)
    safetensors.numpy.save_file({}, path)
    with pytest.raises(UserError, match="holds no tensors"):
        read_tensors(path)
