"""Convert label files to train ids: numbers, colours and masks. An unknown value is an error that names the file."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Integer, UInt8, UInt32

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError

Colour = tuple[int, int, int]  # RGB
# An image with three equal channels has the shape (h, w). Numbers may have any integer type, colours are 8 bit.
Pixels = Integer[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]
NEAREST = 80  # largest Euclidean distance in RGB to the nearest palette colour; ISPRS colours are 255 or more apart
_UNKNOWN = 254  # no taxonomy has that many classes


@dataclasses.dataclass(frozen=True)
class Labels:
    """Train ids of one file."""

    ids: UInt8[np.ndarray, "h w"]  # train ids and IGNORE
    note: str = ""  # a warning


@runtime_checkable
class LabelRule(Protocol):
    """How one dataset stores its labels."""

    @property
    def colours(self) -> bool:
        """Whether an indexed picture is read as the colours of its palette instead of its indices."""
        ...

    def train_ids(self, pixels: Pixels, name: str) -> Labels:
        """Return the train ids of `pixels`, which were read from the file `name`.

        Raises:
          UserError: a value is unknown; the message gives the value, its count and the file.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One class number per pixel."""

    table: Mapping[int, int]  # number in the file -> train id or IGNORE
    remedy: str = ""  # end of the error message about unknown numbers
    colours: bool = dataclasses.field(default=False, init=False)

    def train_ids(self, pixels: Pixels, name: str) -> Labels:
        """See `LabelRule`."""
        if pixels.ndim == 3:
            remedy = f"; {self.remedy}" if self.remedy else ""
            raise UserError(f"{name} contains colours, expected one class number per pixel{remedy}")
        if pixels.dtype == np.uint8:
            labels = _number_table(tuple(self.table.items()))[pixels]
        else:
            values, places = np.unique(pixels, return_inverse=True)
            ids = np.array([self.table.get(int(value), _UNKNOWN) for value in values], np.uint8)
            labels = ids[places.reshape(pixels.shape)]
        if (labels == _UNKNOWN).any():
            unknown = pixels[labels == _UNKNOWN]
            raise UserError(_complaint("values", unknown, str, self.table, name, self.remedy))
        return Labels(labels)


@dataclasses.dataclass(frozen=True)
class Colours:
    """One colour per class."""

    table: Mapping[Colour, int]  # RGB in the file -> train id or IGNORE
    unknown: Literal["error", "ignored", "nearest"] = "error"  # nearest: read as the closest one, up to NEAREST away
    remedy: str = ""  # end of the error message about colours that are refused
    colours: bool = dataclasses.field(default=True, init=False)

    def train_ids(self, pixels: Pixels, name: str) -> Labels:
        """See `LabelRule`."""
        packed = _packed(pixels)
        labels = _colour_table(tuple(self.table.items()))[packed]
        unknown = labels == _UNKNOWN
        if not unknown.any():
            return Labels(labels)
        strange = packed[unknown]
        if self.unknown == "error":
            raise UserError(_complaint("colours", strange, _unpacked, self.table, name, self.remedy))
        found = f"{_percent(unknown.mean())} of {name} has colours outside the palette"
        if self.unknown == "ignored":
            labels[unknown] = IGNORE
            return Labels(labels, f"{found}; they are ignored")
        colours, ids, distances = self._nearest(strange)
        far = colours[distances > NEAREST]
        if far.size:
            complaint = _complaint("colours", strange[np.isin(strange, far)], _unpacked, self.table, name, self.remedy)
            raise UserError(f"{complaint} (their distance to each of these is above {NEAREST})")
        table = np.empty(2**24, np.uint8)
        table[colours] = ids
        labels[unknown] = table[strange]
        return Labels(labels, f"{found}, at most {math.ceil(distances.max())} away; the nearest ones are taken")

    def _nearest(
        self, packed: UInt32[np.ndarray, " pixels"]
    ) -> tuple[Int[np.ndarray, " n"], UInt8[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """Return the distinct packed colours, the train id of the nearest table colour of each, and its distance."""
        present = np.zeros(2**24, bool)  # much faster than sorting tens of millions of pixels
        present[packed] = True
        colours = np.flatnonzero(present)
        rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1).astype(np.float32)
        known = [np.array(colour, np.float32) for colour in self.table]
        distances = np.stack([np.linalg.norm(rgb - colour, axis=-1) for colour in known], axis=-1)
        ids = np.array(list(self.table.values()), np.uint8)[distances.argmin(axis=-1)]
        return colours, ids, distances.min(axis=-1)


@dataclasses.dataclass(frozen=True)
class Mask:
    """Masks of one object class. The mask values are fixed per dataset and not detected per file."""

    bright: Literal[1, 255] = 255  # value of the object; the background is 0
    threshold: int | None = None  # with 255: values above it are the object; None: only 0 and 255 are allowed

    @property
    def colours(self) -> bool:
        """True for 0 and 255: an indexed mask has the indices 0 and 1 and the colours black and white."""
        return self.bright == 255

    def train_ids(self, pixels: Pixels, name: str) -> Labels:
        """See `LabelRule`; of three channels the darkest one counts.

        Raises:
          UserError: a value is unknown, or the mask is in colours (channels differ by more than 127).
        """
        if pixels.ndim == 3:
            if (np.ptp(pixels, axis=-1) > 127).any():
                raise UserError(
                    f"{name} is drawn in colours, expected a black and white mask; check that it is of this dataset"
                )
            pixels = pixels.min(axis=-1)
        if self.bright == 255 and self.threshold is not None:
            return Labels((pixels > self.threshold).astype(np.uint8))
        return Numbers({0: 0, self.bright: 1}).train_ids(pixels, name)


def _percent(share: float) -> str:
    """Format a share above 0 as a percentage that is never "0.0%"."""
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


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
    for channel in range(3):  # in place to save memory: a scene has 36 million pixels
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
        if 0 <= value < len(table):
            table[value] = label
    return table
