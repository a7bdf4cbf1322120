"""Prepared datasets as random-access sources of decoded records.

A prepared dataset is read by name from its array_record files, without the code that built it. Every dataset has the
features image (PNG or JPEG), id and, unless it is unlabelled, label (PNG of train ids).
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import logging as python_logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.benchmark.registry import data_folder, prepared_directory
from crossearth_jax.config import UserError


class Record(TypedDict):
    """One prepared image with its labels, decoded."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    label: UInt8[np.ndarray, "h w"]  # train ids, IGNORE
    index: int  # record number in the split
    id: str
    domain: str


@runtime_checkable
class Source(Protocol):
    """A sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of the image at `index`."""
        ...


class CorruptRecordError(UserError):
    """A record of a prepared dataset cannot be read."""


def dataset_directory(domain: str, data_dir: str | Path) -> Path:
    """Return the folder of the newest prepared version of `domain`.

    Raises:
      UserError: nothing is prepared there.
    """
    directory = prepared_directory(domain, data_dir)
    if directory is None:
        raise UserError(
            f"{domain} is not prepared in {data_folder(data_dir)}; run"
            f" 'python -m crossearth_jax.prepare {domain} --data_dir={data_dir}'"
        )
    return directory


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Hide the informational log lines of TFDS; its warnings and all lines of other packages are still logged."""

    def worth_reading(record: python_logging.LogRecord) -> bool:
        return record.levelno >= python_logging.WARNING or "tensorflow_datasets" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(worth_reading)
    try:
        yield
    finally:
        logger.removeFilter(worth_reading)


def prepared_splits(domain: str, data_dir: str | Path) -> list[str]:
    """Return the names of the prepared splits of `domain`.

    Raises:
      UserError: the domain is not prepared.
    """
    with quiet_tfds():
        return list(tfds.builder_from_directory(dataset_directory(domain, data_dir)).info.splits)


class PreparedSplit:
    """One split of a prepared domain, decoded on access.

    `source[i]` is a `Record`. The labels of an unlabelled domain are IGNORE everywhere.
    """

    def __init__(self, domain: str, split: str, data_dir: str | Path):
        """Open the files.

        Raises:
          UserError: the domain is not prepared or has no such split.
        """
        self.domain, self.split = domain, split
        self._directory = dataset_directory(domain, data_dir)
        with quiet_tfds():
            builder = tfds.builder_from_directory(self._directory)
            splits = builder.info.splits
            if split not in splits:
                raise UserError(f"{domain} has no split '{split}'; it has {', '.join(splits)}")
            images = {"image", "label"} & set(cast(Mapping[str, Any], builder.info.features))
            # The cast is needed because a decorator hides the signature from the type checker.
            self._records: Any = cast(Any, builder).as_data_source(
                split, decoders={name: tfds.decode.SkipDecoding() for name in images}
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Read and decode record `index`.

        Raises:
          CorruptRecordError: the record or one of its images cannot be decoded.
        """
        return self._read(index, lambda record: _decode(record, index, self.domain))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of record `index` without decoding its pixels.

        Raises:
          CorruptRecordError: the record cannot be read.
        """
        return self._read(index, _size)

    def _read[T](self, index: int, decode: Callable[[Mapping[str, Any]], T]) -> T:
        try:
            return decode(self._records[index])
        except Exception as error:  # array_record, TFDS and Pillow each raise their own types
            raise CorruptRecordError(
                f"{self.domain}, split {self.split}: record {index} cannot be read ({error}); delete"
                f" {self._directory} and prepare it again (training can skip it: data.corrupt_records=skip)"
            ) from error


def _decode(record: Mapping[str, Any], index: int, domain: str) -> Record:
    _check_filled(record)
    image = _pixels(record["image"], "RGB")
    label = _pixels(record["label"], "L") if "label" in record else np.full(image.shape[:2], IGNORE, np.uint8)
    if label.shape != image.shape[:2]:
        raise ValueError(f"the image has shape {image.shape}, its label {label.shape}")
    return Record(image=image, label=label, index=index, id=record["id"].decode(), domain=domain)


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    _check_filled(record)
    with _opened(record["image"]) as image:
        return image.height, image.width


def _check_filled(record: Mapping[str, Any]) -> None:
    if not record["image"]:  # array_record returns empty records beyond the end of a truncated file
        raise ValueError("it is empty")


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError(f"its {len(data)} bytes are not an image file") from None


def _pixels(data: bytes, mode: str) -> np.ndarray:
    with _opened(data) as image:
        pixels = np.asarray(image)
        found = image.mode
    if found != mode:  # the values of a palette or 16-bit image would be silently wrong
        raise ValueError(f"expected an image of mode {mode}, found {found}")
    return pixels


class SkippingSource:
    """Replaces corrupt records by the next readable one and remembers their numbers.

    Replacing instead of dropping keeps the positions of all other records, which exact resumption needs.
    """

    def __init__(self, source: Source):
        self._source = source
        self.corrupt: set[int] = set()  # numbers of the corrupt records found so far

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """Return the record at `index` or the first readable one after it (from the start again after the last).

        Raises:
          UserError: no record is readable.
        """
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            if candidate in self.corrupt:
                continue
            try:
                return self._source[candidate]
            except CorruptRecordError as error:
                self.corrupt.add(candidate)
                logging.warning("skipped (%d so far): %s", len(self.corrupt), error)
        raise UserError("not one record can be read; delete the prepared dataset and prepare it again")

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of the image that is read at `index`."""
        height, width = self[index]["label"].shape
        return height, width


class JoinedSource:
    """Several sources, concatenated; record numbers are counted through all of them."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = tuple(sources)
        self._starts = [0, *itertools.accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        source, start = self._find(index)
        example = source[index - start]
        return {**example, "index": start + example["index"]}

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of the image at `index`."""
        source, start = self._find(index)
        return source.size(index - start)

    def _find(self, index: int) -> tuple[Source, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part], self._starts[part]


class MemorySource:
    """All records of a small source, decoded once and kept in memory."""

    def __init__(self, source: Source):
        self._records = [source[index] for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of the image at `index`."""
        height, width = self._records[index]["label"].shape
        return height, width
