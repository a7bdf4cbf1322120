"""Written files are read back bit for bit."""

import hashlib
import zipfile

import ml_dtypes
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.weights.torch_file import read_torch
from crossearth_jax.weights.torch_writer import ALIGNMENT, write_torch_zip


def content():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((3, 4)).astype(np.float32)
    weights = {
        "matrix": matrix,
        "transposed": matrix.T,
        "part": matrix[::2, 1:3],
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "bfloat16": matrix.astype(ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
        "half": matrix.astype(np.float16),
        "whole": np.arange(5),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    meta = {"classes": ("sea", "Küste"), "n": [0, -1, -129, 2**40], "rate": 1e-4, "none": None, "flag": True}
    return {"state_dict": weights, "meta": meta}


def test_round_trip_is_exact(tmp_path):
    written = content()
    write_torch_zip(tmp_path / "x.pth", written)
    file = read_torch(tmp_path / "x.pth")
    assert file.content["meta"] == written["meta"]
    assert list(file.content["state_dict"]) == list(written["state_dict"])
    for name, array in written["state_dict"].items():
        found = file.array(file.content["state_dict"][name])
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes(), name


def test_storages_are_aligned_and_the_archive_is_sound(tmp_path):
    write_torch_zip(tmp_path / "x.pth", content())
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little"
    for tensor in read_torch(tmp_path / "x.pth").content["state_dict"].values():
        assert tensor.storage.blob.begin % ALIGNMENT == 0


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_torch_zip(tmp_path / name, content())
    first, second = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a", "b"))
    assert first == second


def test_failed_writing_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x.pth"
    path.write_text("before")
    with pytest.raises(TypeError, match="complex128"):
        write_torch_zip(path, {"a": np.zeros(2, complex)})
    with pytest.raises(TypeError, match="object"):
        write_torch_zip(path, {"a": object()})
    assert path.read_text() == "before" and [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]
    with pytest.raises(UserError, match="cannot write"):
        write_torch_zip(tmp_path / "no" / "x.pth", {})
