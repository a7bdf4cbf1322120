"""Batches for training, independent of the number of processes.

The stream of training batches depends only on the seed: the records of every epoch are permuted, and the concatenated
epochs are cut into global batches. Several sources are shuffled together as if they were one. With `source_weights`,
each source instead gets a fixed share of every epoch and continues in the next epoch where it stopped. A process reads
only its own rows of each global batch. All processes together therefore read the records that one process would read,
and a run can continue at any step with any number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import TypedDict

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Bool, Int32, UInt8

from crossearth_jax import benchmark
from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs import sources, transforms
from crossearth_jax.inputs.watch import WatchedBatches

MEMORY_LIMIT = 2**30  # bytes of decoded images and labels up to which the train splits are kept in memory
SAMPLED = 64  # at most so many images are opened before training to find their size
_ORDER, _WINDOWS, _SOURCES = range(3)  # independent streams of random numbers


class Batch(TypedDict):
    """The rows of a global batch that this process reads."""

    image: UInt8[np.ndarray, "b h w 3"]  # RGB
    label: UInt8[np.ndarray, "b h w"]  # train ids, IGNORE
    size: Int32[np.ndarray, "b 2"]  # (height, width) of the image; pixels below and to the right of it are padding
    index: Int32[np.ndarray, " b"]  # record number; counted through all sources
    replaced: Bool[np.ndarray, " b"]  # whether this record replaces a corrupt one


def train_iterator(
    config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1, start_step: int = 0
) -> WatchedBatches[Batch]:
    """Return an endless iterator of shuffled batches of the train splits of `config.source`.

    The step alone determines the position in the stream, so a run resumes without any saved iterator state and with
    any number of processes and workers.

    Args:
      config: sources and reading options; `batch_size` is global.
      seed: determines the order of the records (0 to 2**32 - 1).
      process_index: number of this process (or of the group of processes that read the same rows).
      process_count: number of processes (or groups); each gets `batch_size / process_count` rows.
      start_step: global step of the first batch.

    Returns:
      An iterator; close it at the end. Images have the size given by `largest_size`, or the size of the files if these
      are smaller. `next` raises a `UserError` if a label value is unknown or a record cannot be read.

    Raises:
      UserError: a domain is unknown or not prepared, or `batch_size` is not a multiple of `process_count`.
    """
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl flags, which only a command parses
        flags.FLAGS.mark_as_parsed()
    domains = source_domains(config.source, config.data_dir)
    rows = _local_rows(config.batch_size, process_index, process_count)
    parts = _train_sources(domains, config)
    in_memory = isinstance(parts[0], sources.MemorySource)
    source = sources.JoinedSource(parts)
    reader = _Reader(source, _train_size(source, largest_size(domains, config.window)), len(domains[0].classes))
    order = Order(seed, tuple(map(len, parts)), config.source_weights)
    batches = grain.MapDataset.range(start_step, sys.maxsize).map(_TrainBatches(reader, order, config.batch_size, rows))
    # Records in memory are already decoded: threads would only compete for the interpreter lock.
    threads = 0 if in_memory else config.prefetch
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    workers = 0 if in_memory else config.workers
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return WatchedBatches(iter(dataset), f"{config.source}, split train", workers, config.timeout)


def _local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise UserError(
            f"the global batch of {batch_size} images does not divide over {process_count} processes;"
            f" set data.batch_size to a multiple of {process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def largest_size(domains: Sequence[benchmark.Domain], window: int | None) -> tuple[int, int]:
    """Return height and width of the largest training image, each side limited to `window` if one is given."""
    height, width = np.max([domain.sizes["train"] for domain in domains], axis=0).tolist()
    return (height, width) if window is None else (min(height, window), min(width, window))


def _train_sources(domains: Sequence[benchmark.Domain], config: DataConfig) -> Sequence[sources.Source]:
    """Return the train split of each domain, in memory if all of them together are below `MEMORY_LIMIT`."""
    if config.corrupt_records not in ("stop", "skip"):
        raise UserError(f"data.corrupt_records is '{config.corrupt_records}', expected 'stop' or 'skip'")
    parts: list[sources.Source] = [sources.PreparedSplit(domain.name, "train", config.data_dir) for domain in domains]
    if config.corrupt_records == "skip":
        parts = [sources.SkippingSource(part) for part in parts]
    sizes = [domain.sizes["train"] for domain in domains]
    pixels = sum(len(part) * height * width for part, (height, width) in zip(parts, sizes, strict=True))
    if pixels * 4 <= MEMORY_LIMIT:
        logging.info("%s: %d training images kept in memory", config.source, sum(map(len, parts)))
        parts = [sources.MemorySource(part) for part in parts]
    return parts


def _train_size(source: sources.Source, largest: tuple[int, int]) -> tuple[int, int]:
    """Return the size of training images: `largest`, or the size of the files if these are smaller.

    Some datasets are distributed in two tile sizes. Padding the smaller tiles to the larger size would put padding into
    training crops.
    """
    some = range(0, len(source), -(-len(source) // SAMPLED))
    height, width = np.max([source.size(index) for index in some], axis=0).tolist()
    return min(height, largest[0]), min(width, largest[1])


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Pure function from a step to this process's rows of its batch."""

    reader: _Reader
    order: Order
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> Batch:
        """Read the batch of `step`; images larger than the batch are cropped at random positions."""
        first = step * self.batch_size
        indices = [self.order.record(first + row) for row in range(self.batch_size)[self.rows]]
        # Drawn for the whole global batch, so that the crop of a row does not depend on the number of processes.
        places = np.random.default_rng((self.order.seed, _WINDOWS, step)).random((self.batch_size, 2))[self.rows]
        return self.reader.read(indices, places)


@dataclasses.dataclass(frozen=True)
class Order:
    """Pure function from a position in the endless stream of training records to a record number."""

    seed: int
    lengths: tuple[int, ...]  # number of records of each source; record numbers are counted through all sources
    weights: tuple[float, ...] = ()  # of the sources; (): every record once per epoch

    def record(self, position: int) -> int:
        """Return the number of the record at `position`.

        An epoch has as many positions as there are records. Without weights, every record occurs once per epoch. With
        weights, each source has a fixed number of positions per epoch (`shares`) and cycles through its own records in
        one fixed random order.
        """
        epoch, slot = divmod(position, sum(self.lengths))
        slot = int(_permutation((self.seed, _ORDER, epoch), sum(self.lengths))[slot])
        if not self.weights:
            return slot
        first_record = 0
        for number, (length, share) in enumerate(zip(self.lengths, self.shares, strict=True)):
            if slot < share:
                visit = epoch * share + slot
                return first_record + int(_permutation((self.seed, _SOURCES, number), length)[visit % length])
            slot, first_record = slot - share, first_record + length
        raise AssertionError("the shares add up to the length of an epoch")

    @property
    def shares(self) -> tuple[int, ...]:
        """Number of positions of each source in an epoch: proportional to its weight, rounded to the right sum."""
        ends = np.round(np.cumsum(self.weights) / np.sum(self.weights) * sum(self.lengths)).astype(int)
        return tuple(np.diff(ends, prepend=0).tolist())


@functools.lru_cache(maxsize=64)  # reading ahead needs two epochs at the end of one, and each source has an order
def _permutation(seed: tuple[int, ...], length: int) -> np.ndarray:
    # Grain's own shuffle computes a cipher per element, which takes 0.1 ms: ten times the decoding of a small image.
    return np.random.default_rng(seed).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads records by number into a batch."""

    source: sources.Source
    size: tuple[int, int]  # height and width of the batch
    classes: int

    def read(self, indices: Sequence[int], places: np.ndarray) -> Batch:
        """Read records and crop them at the relative positions `places` (n, 2); smaller images are padded."""
        image = np.zeros((len(indices), *self.size, 3), np.uint8)
        label = np.full((len(indices), *self.size), benchmark.IGNORE, np.uint8)
        index = np.zeros(len(indices), np.int32)
        size = np.zeros((len(indices), 2), np.int32)
        replaced = np.zeros(len(indices), bool)
        for row, number in enumerate(indices):
            record = transforms.check_labels(self.source[number], self.classes)
            size[row] = np.minimum(record["label"].shape, self.size)
            image[row], label[row] = transforms.window(record["image"], record["label"], self.size, tuple(places[row]))
            index[row] = record["index"]
            replaced[row] = record["index"] != number
        return Batch(image=image, label=label, size=size, index=index, replaced=replaced)
