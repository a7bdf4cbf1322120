"""Reading of torch's weights files, in both of its formats, without torch and without running anything in them.

The file is memory-mapped and a tensor is a view of it, so a checkpoint of 4 GB takes memory only for the tensors that
are used. Every size in the file is checked against the length of the file before it is used.
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

# The tensors of a file may have EXPANSION times the bytes of the file, plus SLACK, in total. Valid files can have more
# bytes than the file, since tensors may share storages. Without a limit a small file could expand to any size.
EXPANSION = 4
SLACK = 2**24

_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """Content of a file: dictionaries, lists, text, numbers and `Tensor`s, with placeholders for other objects."""

    content: Any
    buffer: mmap.mmap

    def array(self, tensor: Tensor) -> np.ndarray:
        """Return one tensor as an array: a read-only view of the mapped file (booleans are copied)."""
        return tensor.array(self.buffer)


def read_torch(path: str | os.PathLike[str]) -> TorchFile:
    """Read a `.pth` or `.pt` file that `torch.save` wrote (zip or legacy format).

    Nothing named in the file is imported or called. Tensors that are not used, such as the optimizer state, are not
    read.

    Raises:
      UserError: the file is missing, not a torch file, damaged or truncated, or refers to unknown objects.
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
            raise FormatError(f"its tensors claim {claimed:,} bytes, too many for a file of {len(buffer):,} bytes")
    except FormatError as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error}") from None
    return TorchFile(content, buffer)


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Map a file into memory, read-only.

    Raises:
      UserError: it does not exist, is not a regular file, is empty or cannot be read.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a weights file")
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(f"{path} is {'empty' if path.is_file() else 'not a file'}; expected a weights file")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from None


def _describe(buffer: mmap.mmap) -> str:
    """Return the error text for a file that is not a torch file, with a guess at what it is."""
    head = buffer[:512]
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer; download the file it points to"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page, so the download failed"
    elif head[257:262] == b"ustar":
        found = "a tar archive (torch before 0.1.10, or an archive to unpack first)"
    elif head.startswith(b"\x80"):
        found = "a plain pickle, which is not read because it may run code"
    elif head[8:9] == b"{":
        found = "a truncated or damaged safetensors file"
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
            raise FormatError(f"its storage {key[:80]!r} claims {count * dtype.itemsize} bytes, the file holds {held}")
        return Storage(Blob(member.size, member.begin), dtype, 0, count)

    machine = TensorUnpickler(buffer, description.begin, description.begin + description.size, load)
    return machine.load(), machine.tensors


def _root(found: dict[str, torch_zip.Member]) -> str:
    """Return the name of the one folder that contains all members of an archive written by torch."""
    roots = {name.split("/", 1)[0] for name in found}
    if len(roots) == 1:
        root = roots.pop()
        if f"{root}/constants.pkl" in found or any(name.startswith(f"{root}/code/") for name in found):
            raise FormatError("it is a TorchScript program; expected weights (a saved state_dict)")
        if not all(member.plain for member in found.values()):
            raise FormatError("its members are compressed or encrypted; expected uncompressed ones, as torch.save does")
        if f"{root}/data.pkl" in found:
            return root
    raise FormatError("it is a zip archive, but not one of torch; if it contains a weights file, unpack it first")


def _identity(identity: Any, length: int) -> tuple[str, np.dtype, int]:
    """Return key, element type and number of elements of a storage from its persistent identity in the pickle."""
    kind = identity[0] if isinstance(identity, tuple) and identity else None
    if kind == "module":
        raise FormatError("it holds a pickled module with its code; expected weights (a saved state_dict)")
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
            raise FormatError(f"its storage {key[:80]!r} claims {count * dtype.itemsize} bytes, which is impossible")
        return _view(Storage(blob, dtype, 0, count), identity[5])

    machine = TensorUnpickler(buffer, len(_LEGACY_MAGIC), len(buffer), load)
    if machine.load() != 1001:
        raise FormatError("its protocol version is unknown, expected 1001")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("it was written on a big-endian machine; save it again on a little-endian one")
    content, keys = machine.load(), machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(blobs):
        raise FormatError("its list of storages differs from the storages of its tensors")
    if len(keys) != len(blobs):
        raise FormatError("its list of storages contains one twice")
    _lay_out(buffer, machine.position, [blobs[key] for key in keys])
    return content, machine.tensors


def _view(storage: Storage, view: Any) -> Storage:
    """Return a part of a storage, given as (key, first element, number of elements); None is the whole storage.

    torch before 0.4 wrote such parts.
    """
    if view is None:
        return storage
    whole = isinstance(view, tuple) and len(view) == 3 and all(type(number) is int for number in view[1:])
    if not whole or min(view[1:]) < 0 or view[1] + view[2] > storage.count:
        raise FormatError("part of a storage reaches outside it")
    return Storage(storage.blob, storage.dtype, view[1] * storage.dtype.itemsize, view[2])


def _lay_out(buffer: mmap.mmap, position: int, blobs: list[tuple[Blob, np.dtype]]) -> None:
    """Set the position of each storage in the file. Storages are consecutive, each after its number of elements."""
    for blob, dtype in blobs:
        if position + 8 > len(buffer):
            raise FormatError("its storages are truncated; expected a complete download")
        (count,) = struct.unpack_from("<q", buffer, position)
        if count * dtype.itemsize != blob.size:
            raise FormatError(f"a storage holds {count} elements, its tensors expect {blob.size // dtype.itemsize}")
        blob.begin = position + 8
        position = blob.begin + blob.size
    if position > len(buffer):
        raise FormatError("its storages are truncated; expected a complete download")
