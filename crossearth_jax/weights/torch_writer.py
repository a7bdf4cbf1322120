"""Writing of files that `torch.load` reads, also with `weights_only=True`, without torch."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossearth_jax.runtime.atomic import replacing
from crossearth_jax.weights.torch_types import STORAGE_DTYPES

ALIGNMENT = 64  # bytes; torch aligns the data of storages so that they can be memory-mapped

_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}


def write_torch_zip(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write `content` in torch's zip format, atomically.

    Args:
      path: the file.
      content: nested dictionaries, lists, tuples, text, numbers and None; arrays become tensors.

    Raises:
      TypeError: `content` holds something else, or an array type without a torch storage class.
      UserError: the file cannot be written.
    """
    pickler = _Pickler()
    description = pickler.program(content)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", description)
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.arrays):
            _add(archive, f"data/{key}", np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | np.ndarray) -> None:
    """Add a member whose data begin at a multiple of `ALIGNMENT`."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(data)
    zip64 = len(data) >= 2**31
    assert archive.fp is not None
    header = archive.fp.tell() + 30 + len(info.filename) + (20 if zip64 else 0) + 4
    padding = -header % ALIGNMENT
    info.extra = struct.pack("<2H", 0x4246, padding) + b"\0" * padding
    with archive.open(info, "w", force_zip64=zip64) as member:
        member.write(memoryview(data))


class _Pickler:
    """Writer of pickles in protocol 2. Arrays are collected in `arrays` and referred to by their index."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def program(self, content: Any) -> bytes:
        return b"\x80\x02" + self._value(content) + b"."

    def _value(self, value: Any) -> bytes:
        if isinstance(value, np.ndarray | np.generic):
            return self._tensor(np.asarray(value))
        if isinstance(value, Mapping):
            items = (self._value(key) + self._value(item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self._value, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self._value, value)) + b"t"
        return _scalar(value)

    def _tensor(self, array: np.ndarray) -> bytes:
        if array.dtype not in _STORAGES:
            raise TypeError(f"torch has no storage class for arrays of {array.dtype}")
        storage = b"(" + _scalar("storage") + _global("torch", _STORAGES[array.dtype])
        storage += _scalar(str(len(self.arrays))) + _scalar("cpu") + _scalar(array.size) + b"tQ"
        self.arrays.append(array)
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        hooks = _global("collections", "OrderedDict") + b")R"
        arguments = storage + _scalar(0) + self._value(array.shape) + self._value(strides) + b"\x89" + hooks
        return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _scalar(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    raise TypeError(f"cannot write a {type(value).__name__} to a torch file")
