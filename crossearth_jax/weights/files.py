"""Named tensors from any weights file; the format is detected from the content, whatever the file is called."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from crossearth_jax.config import UserError
from crossearth_jax.runtime.buckets import local_copy
from crossearth_jax.weights.torch_file import map_file, read_torch
from crossearth_jax.weights.torch_types import Tensor

# Keys under which torch checkpoints hold their weights, beside logs and optimizer state.
_STATE_KEYS = ("state_dict", "model", "teacher")
_STYLE_KEYS = ("state_dict_ghiasi", "state_dict_stylepredictor")  # those of style-augmentation's two files


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The arrays of a file, by name, and its metadata."""

    tensors: dict[str, np.ndarray]
    metadata: Mapping[str, Any]  # safetensors: text by key; torch: the "meta" of the checkpoint


def read_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Read a torch or safetensors file.

    Arrays of a torch file are read-only views of the memory-mapped file. A file in a bucket is copied first.

    Raises:
      UserError: the file is missing, damaged, or holds no tensors.
    """
    with local_copy(path) as local:
        header = map_file(local)
        file = _read_safetensors(local) if header[8:9] == b"{" and header[:2] != b"PK" else _read_torch(local)
    if not file.tensors:
        raise UserError(f"{os.fspath(path)} holds no tensors; expected weights")
    return file


def _read_safetensors(path: str | os.PathLike[str]) -> TensorFile:
    try:
        with safetensors.safe_open(path, "numpy") as file:  # pyright: ignore[reportPrivateImportUsage]
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})
    except (safetensors.SafetensorError, TypeError) as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}; expected a complete safetensors file") from None


def _read_torch(path: str | os.PathLike[str]) -> TensorFile:
    file = read_torch(path)
    content = file.content if isinstance(file.content, dict) else {}
    if any(key in content for key in _STYLE_KEYS):
        raise UserError(
            f"{os.fspath(path)} is one half of a style network, not a model; name the folder that holds both halves, "
            "checkpoint_transformer.pth and checkpoint_stylepredictor.pth"
        )
    state = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    meta = content.get("meta")
    tensors = {str(name): file.array(value) for name, value in state.items() if isinstance(value, Tensor)}
    return TensorFile(tensors, meta if isinstance(meta, dict) else {})
