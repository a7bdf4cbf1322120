"""Label files to train ids: numbers, colours and masks; a value without a meaning is an error that says where it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8, UInt32

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError

Colour = tuple[int, int, int]  # RGB
Pixels = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]  # three equal channels count as one
_UNKNOWN = 254  # no taxonomy has that many classes


@runtime_checkable
class LabelRule(Protocol):
    """How one dataset stores its labels."""

    def train_ids(self, pixels: Pixels, name: str) -> UInt8[np.ndarray, "h w"]:
        """Train ids and IGNORE.

        Raises:
          UserError: a value has no meaning; says which, how often, in which file.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One class number per pixel."""

    table: Mapping[int, int]  # number in the file -> train id or IGNORE
    remedy: str = ""  # what to do about other numbers

    def train_ids(self, pixels: Pixels, name: str) -> UInt8[np.ndarray, "h w"]:
        """See `LabelRule`."""
        if pixels.ndim == 3:
            raise UserError(f"{name} holds colours, expected one class number per pixel")
        labels = _number_table(tuple(self.table.items()))[pixels]
        if (labels == _UNKNOWN).any():
            unknown = pixels[labels == _UNKNOWN]
            raise UserError(_complaint("values", unknown, str, self.table, name, self.remedy))
        return labels


@dataclasses.dataclass(frozen=True)
class Colours:
    """One colour per class."""

    table: Mapping[Colour, int]  # RGB in the file -> train id or IGNORE
    ignore_unknown: bool = False  # makes other colours IGNORE instead of an error
    remedy: str = ""  # what to do about other colours

    def train_ids(self, pixels: Pixels, name: str) -> UInt8[np.ndarray, "h w"]:
        """See `LabelRule`."""
        packed = _packed(pixels)
        labels = _colour_table(tuple(self.table.items()))[packed]
        unknown = labels == _UNKNOWN
        if unknown.any() and not self.ignore_unknown:
            raise UserError(_complaint("colours", packed[unknown], _unpacked, self.table, name, self.remedy))
        labels[unknown] = IGNORE
        return labels


@dataclasses.dataclass(frozen=True)
class Mask:
    """Labels of one object: 0/1, or dark and bright, told apart by the largest value of the file."""

    threshold: int | None  # bright is above it; None: only 0 and 255 exist

    def train_ids(self, pixels: Pixels, name: str) -> UInt8[np.ndarray, "h w"]:
        """See `LabelRule`; a colour counts as bright if its darkest channel does."""
        grey = pixels.min(axis=-1) if pixels.ndim == 3 else pixels
        if grey.max(initial=0) <= 1:
            return grey
        if self.threshold is not None:
            return (grey > self.threshold).astype(np.uint8)
        return Numbers({0: 0, 255: 1}).train_ids(grey, name)


def _complaint(
    what: str, unknown: np.ndarray, shown: Callable[[int], str], table: Mapping[Any, int], name: str, remedy: str
) -> str:
    values, counts = np.unique(unknown, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:3]
    found = ", ".join(f"{shown(int(values[i]))} ({counts[i]} pixels)" for i in most)
    more = f" and {len(values) - 3} more" if len(values) > 3 else ""
    complaint = f"{name} has the unknown label {what} {found}{more}; expected {', '.join(map(str, table))}"
    return f"{complaint}; {remedy}" if remedy else complaint


def _packed(pixels: Pixels) -> UInt32[np.ndarray, "h w"]:
    packed = np.zeros(pixels.shape[:2], np.uint32)
    for channel in range(3):  # in place: a scene has 36 million pixels
        packed <<= 8
        packed |= pixels[..., channel] if pixels.ndim == 3 else pixels
    return packed


def _unpacked(colour: int) -> str:
    return str((colour >> 16, colour >> 8 & 255, colour & 255))


@functools.lru_cache(maxsize=2)
def _colour_table(colours: tuple[tuple[Colour, int], ...]) -> UInt8[np.ndarray, 16777216]:
    table = np.full(2**24, _UNKNOWN, np.uint8)
    for (red, green, blue), label in colours:
        table[red << 16 | green << 8 | blue] = label
    return table


@functools.lru_cache(maxsize=4)
def _number_table(numbers: tuple[tuple[int, int], ...]) -> UInt8[np.ndarray, 256]:
    table = np.full(256, _UNKNOWN, np.uint8)
    for value, label in numbers:
        table[value] = label
    return table
