"""Batches for training, the same for every number of processes.

The stream of training batches is a function of the seed alone: the permutations of the epochs one after
another, cut into global batches. A process reads only its own rows of each global batch, so processes read
disjoint records, see together what one process would see, and any number of them can continue at any step.
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
from crossearth_jax.benchmark.registry import find_domain
from crossearth_jax.config import DataConfig, UserError
from crossearth_jax.inputs import sources, transforms
from crossearth_jax.inputs.watch import WatchedBatches

MEMORY_LIMIT = 2**30  # bytes of decoded pixels up to which a split is decoded once and kept
SAMPLED = 64  # images whose size is looked at before training
_ORDER, _WINDOWS = range(2)  # independent streams of random numbers


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
    """Endless shuffled batches of the train split of `config.source`.

    A run resumes by the step alone, with any number of processes and workers: there is no state to save.

    Args:
      config: what is read and how; `batch_size` is global.
      seed: fixes the order (0 to 2**32 - 1).
      process_index: number of this process (or of the group of processes that read the same rows).
      process_count: number of processes (or groups); each gets `batch_size / process_count` rows.
      start_step: global step of the first batch.

    Returns:
      An iterator to be closed in the end; images have the train size of the domain, or that of its files if they are
      smaller.

    Raises:
      UserError: the domain is unknown or not prepared, the batch does not divide, or a label is unknown.
    """
    domain = find_domain(config.source, config.data_dir)
    rows = _local_rows(config.batch_size, process_index, process_count)
    source = _train_source(domain, config)
    in_memory = isinstance(source, sources.MemorySource)
    batches = grain.MapDataset.range(start_step, sys.maxsize).map(
        _TrainBatches(_Reader(source, _train_size(source, domain), domain), seed, config.batch_size, rows)
    )
    # Threads would only fight over the interpreter lock for examples that are already decoded.
    threads = 0 if in_memory else config.prefetch
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    workers = 0 if in_memory else config.workers
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return WatchedBatches(iter(dataset), f"{domain.name}, split train", workers, config.timeout)


def _local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise UserError(
            f"the global batch of {batch_size} images does not divide over {process_count} processes;"
            f" set data.batch_size to a multiple of {process_count}"
        )
    local = batch_size // process_count
    return slice(process_index * local, (process_index + 1) * local)


def _train_source(domain: benchmark.Domain, config: DataConfig) -> sources.Source:
    """The train split, in memory if it is small."""
    if config.corrupt_records not in ("stop", "skip"):
        raise UserError(f"data.corrupt_records is '{config.corrupt_records}', expected 'stop' or 'skip'")
    source: sources.Source = sources.PreparedSplit(domain.name, "train", config.data_dir)
    if config.corrupt_records == "skip":
        source = sources.SkippingSource(source)
    height, width = domain.sizes["train"]
    if len(source) * height * width * 4 <= MEMORY_LIMIT:
        logging.info("%s: %d training images kept in memory", domain.name, len(source))
        source = sources.MemorySource(source)
    return source


def _train_size(source: sources.Source, domain: benchmark.Domain) -> tuple[int, int]:
    """The size of training images: the stated one, or that of the files if they are smaller.

    Some sets exist in two tile sizes; padding the smaller to the larger would change what a crop shows.
    """
    some = range(0, len(source), -(-len(source) // SAMPLED))
    height, width = np.max([source.size(index) for index in some], axis=0).tolist()
    largest = domain.sizes["train"]
    return min(height, largest[0]), min(width, largest[1])


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Step -> this process's rows of its batch, a pure function."""

    reader: _Reader
    seed: int
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> Batch:
        """Reads the batch of `step`; images larger than the split's size are cut at random places."""
        length = len(self.reader.source)
        epochs, offsets = np.divmod(step * self.batch_size + np.arange(self.batch_size)[self.rows], length)
        indices = [
            int(_permutation(self.seed, int(epoch), length)[i]) for epoch, i in zip(epochs, offsets, strict=True)
        ]
        # Drawn for the global batch, so that a row's window does not depend on the number of processes.
        places = np.random.default_rng((self.seed, _WINDOWS, step)).random((self.batch_size, 2))[self.rows]
        return self.reader.read(indices, places)


@functools.lru_cache(maxsize=4)  # threads that read ahead straddle the end of an epoch
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    # Grain's own shuffle computes a cipher per element: 0.1 ms each for small splits, ten times their decoding.
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Record numbers of a split -> a batch."""

    source: sources.Source
    size: tuple[int, int]  # height and width of the batch
    domain: benchmark.Domain

    def read(self, indices: Sequence[int], places: np.ndarray) -> Batch:
        """Reads records, windows of which are cut at `places`; the rest of too small an image is padding."""
        image = np.zeros((len(indices), *self.size, 3), np.uint8)
        label = np.full((len(indices), *self.size), benchmark.IGNORE, np.uint8)
        index = np.zeros(len(indices), np.int32)
        size = np.zeros((len(indices), 2), np.int32)
        replaced = np.zeros(len(indices), bool)
        for row, record in enumerate(indices):
            example = transforms.check_labels(self.source[record], len(self.domain.classes))
            size[row] = np.minimum(example["label"].shape, self.size)
            image[row], label[row] = transforms.window(
                example["image"], example["label"], self.size, tuple(places[row])
            )
            index[row] = example["index"]
            replaced[row] = example["index"] != record
        return Batch(image=image, label=label, size=size, index=index, replaced=replaced)
