"""Tensors of a torch file as checked views of the mapped file."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np


class FormatError(ValueError):
    """The file is damaged or malicious. The text says what was found and continues "cannot read FILE: …"."""


# Element types by the names that torch writes in a file.
DTYPES: dict[str, np.dtype] = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
}

# Storage classes of torch and their element types. Quantised storages are not supported: they need scales.
STORAGE_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": DTYPES["torch.float64"],
    "FloatStorage": DTYPES["torch.float32"],
    "HalfStorage": DTYPES["torch.float16"],
    "BFloat16Storage": DTYPES["torch.bfloat16"],
    "LongStorage": DTYPES["torch.int64"],
    "IntStorage": DTYPES["torch.int32"],
    "ShortStorage": DTYPES["torch.int16"],
    "CharStorage": DTYPES["torch.int8"],
    "ByteStorage": DTYPES["torch.uint8"],
    "BoolStorage": DTYPES["torch.bool"],
    "UntypedStorage": DTYPES["torch.uint8"],
}


@dataclasses.dataclass(slots=True, eq=False)
class Blob:
    """The bytes of one storage. `begin` is its position in the file, None until it is known."""

    size: int
    begin: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Consecutive elements of one type inside a blob."""

    blob: Blob
    dtype: np.dtype
    first: int  # position inside the blob, in bytes
    count: int  # number of elements

    def retyped(self, dtype: np.dtype) -> Storage:
        """Return the same bytes as elements of another type."""
        size = self.count * self.dtype.itemsize
        return Storage(self.blob, dtype, self.first, size // dtype.itemsize)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A strided view of a storage, which the function `tensor` has checked."""

    storage: Storage
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def nbytes(self) -> int:
        """Size of the tensor as a contiguous array, in bytes."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def array(self, buffer: Any) -> np.ndarray:
        """Return the tensor as a read-only view of `buffer` (the mapped file).

        Booleans are copied instead, because any byte other than 0 counts as True.
        """
        dtype = self.storage.dtype
        if self.storage.blob.begin is None:
            raise FormatError("a tensor's data are not in the file")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, dtype)
        begin = self.storage.blob.begin + self.storage.first + self.offset * dtype.itemsize
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        if dtype == np.bool_:
            return np.ndarray(self.shape, np.uint8, buffer, begin, strides) != 0
        view = np.ndarray(self.shape, dtype, buffer, begin, strides)
        view.flags.writeable = False
        return view


def tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Create a view of `storage` after checking that it lies inside.

    Raises:
      FormatError: an argument has the wrong type, or the view reaches outside its storage.
    """
    if not isinstance(storage, Storage):
        raise FormatError("a tensor is built from something that is not a storage")
    if not _sizes(shape) or not _sizes(strides) or len(shape) != len(strides) or not _sizes((offset,)):
        raise FormatError("a tensor's offset, shape or strides are not whole numbers of 0 or more")
    empty = math.prod(shape) == 0
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if not empty and reach > storage.count:
        raise FormatError(f"a tensor reaches element {reach} of a storage that holds {storage.count}")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _sizes(values: Any) -> bool:
    """Return whether `values` is a tuple or list of up to 32 integers in [0, 2**48)."""
    whole = isinstance(values, tuple | list) and len(values) <= 32
    return whole and all(type(value) is int and 0 <= value < 2**48 for value in values)
