"""Batches for training, the same for every number of processes.

The stream of training batches is a function of the seed alone: the permutations of the epochs one after
another, cut into global batches. Several sources are shuffled together as if they were one; with `source_weights` each
has its share of every epoch's records instead, and goes on in the next epoch where it stopped. A process reads only
its own rows of each global batch, so processes read disjoint records, see together what one process would see, and any
number of them can continue at any step.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import TypedDict

import grain
import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, UInt8

from crossearth_jax import benchmark
from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs import sources, transforms
from crossearth_jax.inputs.watch import WatchedBatches

MEMORY_LIMIT = 2**30  # bytes of decoded pixels up to which a split is decoded once and kept
SAMPLED = 64  # images whose size is looked at before training
_ORDER, _WINDOWS, _SOURCES = range(3)  # independent streams of random numbers


class Batch(TypedDict):
    """This process's rows of a global batch."""

    image: UInt8[np.ndarray, "b h w 3"]  # RGB
    label: UInt8[np.ndarray, "b h w"]  # train ids, IGNORE
    size: Int32[np.ndarray, "b 2"]  # (height, width) of the image; the rest, at the end of either side, is padding
    index: Int32[np.ndarray, " b"]  # record number in the split
    replaced: Bool[np.ndarray, " b"]  # whether another record stands in for a corrupt one


def train_iterator(
    config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1, start_step: int = 0
) -> WatchedBatches[Batch]:
    """Endless shuffled batches of the train splits of `config.source`.

    A run resumes by the step alone, with any number of processes and workers: there is no state to save.

    Args:
      config: what is read and how; `batch_size` is global.
      seed: fixes the order (0 to 2**32 - 1).
      process_index: number of this process (or of the group of processes that read the same rows).
      process_count: number of processes (or groups); each gets `batch_size / process_count` rows.
      start_step: global step of the first batch.

    Returns:
      An iterator to be closed in the end; images have the size that `largest_size` states, or that of the files if
      they are smaller.

    Raises:
      UserError: a domain is unknown or not prepared, the batch does not divide, or a label is unknown.
    """
    domains = source_domains(config.source, config.data_dir)
    rows = _local_rows(config.batch_size, process_index, process_count)
    parts = _train_sources(domains, config)
    in_memory = isinstance(parts[0], sources.MemorySource)
    source = sources.JoinedSource(parts)
    reader = _Reader(source, _train_size(source, largest_size(domains, config.window)), len(domains[0].classes))
    order = Order(seed, tuple(map(len, parts)), config.source_weights)
    batches = grain.MapDataset.range(start_step, sys.maxsize).map(_TrainBatches(reader, order, config.batch_size, rows))
    # Threads would only fight over the interpreter lock for records that are already decoded.
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
    """Height and width of the largest training image, or of the windows that are cut from them."""
    height, width = np.max([domain.sizes["train"] for domain in domains], axis=0).tolist()
    return (height, width) if window is None else (min(height, window), min(width, window))


def _train_sources(domains: Sequence[benchmark.Domain], config: DataConfig) -> Sequence[sources.Source]:
    """The train split of each domain, in memory if all are small together."""
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
    """The size of training images: the stated one, or that of the files if they are smaller.

    Some sets exist in two tile sizes; padding the smaller to the larger would change what a crop shows.
    """
    some = range(0, len(source), -(-len(source) // SAMPLED))
    height, width = np.max([source.size(index) for index in some], axis=0).tolist()
    return min(height, largest[0]), min(width, largest[1])


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Step -> this process's rows of its batch, a pure function."""

    reader: _Reader
    order: Order
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> Batch:
        """Reads the batch of `step`; images larger than the split's size are cut at random places."""
        first = step * self.batch_size
        indices = [self.order.record(first + row) for row in range(self.batch_size)[self.rows]]
        # Drawn for the global batch, so that a row's window does not depend on the number of processes.
        places = np.random.default_rng((self.order.seed, _WINDOWS, step)).random((self.batch_size, 2))[self.rows]
        return self.reader.read(indices, places)


@dataclasses.dataclass(frozen=True)
class Order:
    """Position in the endless stream of training records -> record number, a pure function."""

    seed: int
    lengths: tuple[int, ...]  # records of each source; their numbers go on from one source to the next
    weights: tuple[float, ...] = ()  # of the sources; (): their lengths

    def record(self, position: int) -> int:
        """The record at `position`.

        An epoch has as many positions as there are records. Without weights it visits each record once. With weights,
        source j has a fixed number of its positions and visits its own records in turn, in an order of its own.
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
        """Positions that each source has in an epoch: its weight, rounded so that they add up."""
        ends = np.round(np.cumsum(self.weights) / np.sum(self.weights) * sum(self.lengths)).astype(int)
        return tuple(np.diff(ends, prepend=0).tolist())


@functools.lru_cache(maxsize=64)  # threads that read ahead straddle the end of an epoch; one for each source
def _permutation(seed: tuple[int, ...], length: int) -> np.ndarray:
    # Grain's own shuffle computes a cipher per element: 0.1 ms each for small splits, ten times their decoding.
    return np.random.default_rng(seed).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Record numbers of a split -> a batch."""

    source: sources.Source
    size: tuple[int, int]  # height and width of the batch
    classes: int

    def read(self, indices: Sequence[int], places: np.ndarray) -> Batch:
        """Reads records, windows of which are cut at `places`; the rest of too small an image is padding."""
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
