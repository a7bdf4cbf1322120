"""Reads torch's weight files, in both of its formats, without torch and without running anything in them.

The file is mapped: a tensor is a view of it, and a 4 GB checkpoint takes memory only for what is used. Every size is
checked against the file before it is believed.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import pathlib
import struct
from typing import Any

import numpy as np

from crossearth_jax.config import UserError
from crossearth_jax.weights import torch_zip
from crossearth_jax.weights.torch_pickle import Symbol, TensorUnpickler
from crossearth_jax.weights.torch_types import STORAGE_DTYPES, Blob, FormatError, Storage, Tensor

# How many bytes the tensors of a file may describe together per byte of the file. More than 1 is honest (views of
# shared storages); without a limit a few bytes could be expanded to any size.
EXPANSION = 4
SLACK = 2**24

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """What a file describes: dictionaries, lists, text, numbers, `Tensor`s, and placeholders for the rest."""

    content: Any
    buffer: mmap.mmap

    def array(self, tensor: Tensor) -> np.ndarray:
        """The numbers of one tensor: a read-only view of the mapped file."""
        return tensor.array(self.buffer)


def read_torch(path: str | os.PathLike[str]) -> TorchFile:
    """Reads a `.pth`/`.pt` file as `torch.save` writes it (zip or legacy format).

    Nothing named in the file is imported or called. Optimizer state and logs cost no memory unless used.

    Raises:
      UserError: the file is missing, is no torch file, is damaged or cut off, or holds more than weights.
    """
    buffer = map_file(path)
    try:
        if buffer[:4] == b"PK\x03\x04":
            content, tensors = _read_zip(buffer)
        elif buffer[: len(_LEGACY_MAGIC)] == _LEGACY_MAGIC:
            content, tensors = _read_legacy(buffer)
        else:
            raise FormatError(_describe(buffer))
        claimed = sum(tensor.nbytes for tensor in tensors)
        if claimed > EXPANSION * len(buffer) + SLACK:
            raise FormatError(f"its tensors claim {claimed:,} bytes, far more than the {len(buffer):,} of the file")
    except FormatError as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}") from None
    return TorchFile(content, buffer)


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Maps a file read-only.

    Raises:
      UserError: it does not exist, is no regular file, is empty or may not be read.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file of weights")
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(f"{path} is {'empty' if path.is_file() else 'no file'}; expected a file of weights")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from None


def _describe(buffer: mmap.mmap) -> str:
    """What a file that is no torch file seems to be."""
    head = buffer[:512]
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer; download the file it points to"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page; the download went wrong"
    elif head[257:262] == b"ustar":
        found = "a tar archive (torch before 0.1.10, or an archive to unpack first)"
    elif head.startswith(b"\x80"):
        found = "a plain pickle, which is not read because it may run code"
    elif head[8:9] == b"{":
        found = "a safetensors file that is cut off or damaged"
    else:
        found = f"something else (it begins with {head[:8]!r})"
    return f"it is {found}; expected a file written by torch.save, or safetensors"


# --- zip format (torch 1.6 and later) ---------------------------------------------------------------------


def _read_zip(buffer: mmap.mmap) -> tuple[Any, list[Tensor]]:
    found = torch_zip.members(buffer)
    root = _root(found)
    order = found.get(f"{root}/byteorder")
    if order is not None and buffer[order.begin : order.begin + min(order.size, 16)].strip() != b"little":
        raise FormatError("it was written on a big-endian machine; save it again on a little-endian one")
    description = found[f"{root}/data.pkl"]

    def load(identity: Any) -> Storage:
        key, dtype, count = _identity(identity, 5)
        member = found.get(f"{root}/data/{key}")
        if member is None or member.size != count * dtype.itemsize:
            held = "none" if member is None else member.size
            raise FormatError(f"its storage {key[:80]!r} claims {count * dtype.itemsize} bytes, the file has {held}")
        return Storage(Blob(member.size, member.begin), dtype, 0, count)

    machine = TensorUnpickler(buffer, description.begin, description.begin + description.size, load)
    return machine.load(), machine.tensors


def _root(found: dict[str, torch_zip.Member]) -> str:
    """The one folder that all members are in."""
    roots = {name.split("/", 1)[0] for name in found}
    if len(roots) == 1:
        root = roots.pop()
        if f"{root}/constants.pkl" in found or any(name.startswith(f"{root}/code/") for name in found):
            raise FormatError("it is a TorchScript program; expected weights (the module's state_dict, saved)")
        if not all(member.plain for member in found.values()):
            raise FormatError("its members are compressed or encrypted; expected them stored, as torch.save does")
        if f"{root}/data.pkl" in found:
            return root
    raise FormatError("it is a zip archive, but not of torch; if it contains the weights, unpack it first")


def _identity(identity: Any, length: int) -> tuple[str, np.dtype, int]:
    """Key, element type and number of elements of a storage, from how the object description refers to it."""
    kind = identity[0] if isinstance(identity, tuple) and identity else None
    if kind == "module":
        raise FormatError("it holds a pickled module with its code; expected weights (the module's state_dict)")
    if kind != "storage" or len(identity) < length:
        raise FormatError("it refers to a storage in an unknown way")
    _, cls, key, _, count = identity[:5]
    name = cls.name.removeprefix("torch.") if isinstance(cls, Symbol) else ""
    if name not in STORAGE_DTYPES:
        raise FormatError(f"its storage has an unknown element type {name!r}")
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
        raise FormatError("it refers to a storage in an unknown way")
    return key, STORAGE_DTYPES[name], count


# --- legacy format: five pickles, then the storages -------------------------------------------------------


def _read_legacy(buffer: mmap.mmap) -> tuple[Any, list[Tensor]]:
    blobs: dict[str, tuple[Blob, np.dtype]] = {}

    def load(identity: Any) -> Storage:
        key, dtype, count = _identity(identity, 6)
        blob, _ = blobs.setdefault(key, (Blob(count * dtype.itemsize), dtype))
        if blob.size != count * dtype.itemsize or blob.size > len(buffer):
            raise FormatError(f"its storage {key[:80]!r} claims {count * dtype.itemsize} bytes, which cannot be")
        return _view(Storage(blob, dtype, 0, count), identity[5])

    machine = TensorUnpickler(buffer, len(_LEGACY_MAGIC), len(buffer), load)
    if machine.load() != 1001:
        raise FormatError("its protocol version is unknown, expected 1001")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("it was written on a big-endian machine; save it again on a little-endian one")
    content, keys = machine.load(), machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(blobs):
        raise FormatError("its list of storages is not the one its tensors use")
    if len(keys) != len(blobs):
        raise FormatError("its list of storages names one twice")
    _lay_out(buffer, machine.position, [blobs[key] for key in keys])
    return content, machine.tensors


def _view(storage: Storage, view: Any) -> Storage:
    """Part of a storage, which torch before 0.4 could share: (key, first element, elements)."""
    if view is None:
        return storage
    whole = isinstance(view, tuple) and len(view) == 3 and all(type(number) is int for number in view[1:])
    if not whole or min(view[1:]) < 0 or view[1] + view[2] > storage.count:
        raise FormatError("part of a storage reaches outside it")
    return Storage(storage.blob, storage.dtype, view[1] * storage.dtype.itemsize, view[2])


def _lay_out(buffer: mmap.mmap, position: int, blobs: list[tuple[Blob, np.dtype]]) -> None:
    """Finds each storage: they follow one another, each behind its number of elements."""
    for blob, dtype in blobs:
        if position + 8 > len(buffer):
            raise FormatError("its storages are cut off; expected a complete download")
        (count,) = struct.unpack_from("<q", buffer, position)
        if count * dtype.itemsize != blob.size:
            raise FormatError(f"a storage holds {count} elements, its tensors say {blob.size // dtype.itemsize}")
        blob.begin = position + 8
        position = blob.begin + blob.size
    if position > len(buffer):
        raise FormatError("its storages are cut off; expected a complete download")
