"""One domain of a benchmark through a model: its confusion matrix, and a few examples to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt8

from crossearth_jax.benchmark import Domain
from crossearth_jax.config import UserError
from crossearth_jax.inference import metrics, resizing
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit, Record, Source
from crossearth_jax.inputs.transforms import check_labels
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.progress import Progress

# What an image looks like, of the image and its record number; None leaves it as it is.
Appearance = Callable[[UInt8[np.ndarray, "h w 3"], int], UInt8[np.ndarray, "h w 3"]] | None

EXAMPLE_SIDE = 512  # pixels, of the images a report shows


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """What evaluation keeps of one domain."""

    confusion: Int[np.ndarray, "k k"]  # int64, rows are the truth
    images: UInt8[np.ndarray, "n h w 3"]  # examples
    labels: UInt8[np.ndarray, "n h w"]
    predictions: UInt8[np.ndarray, "n h w"]


def score_domain(
    windows: SlidingWindows,
    domain: Domain,
    split: str,
    data_dir: str,
    examples: int = 0,
    appearance: Appearance = None,
) -> DomainResult:
    """Scores every image of one split of one domain; all processes of a run call it together.

    Each process scores its share of the images on its own devices; the confusion matrices are summed at the end.

    Args:
      windows: applies the model.
      domain: its facts.
      split: name of the split.
      data_dir: folder of the prepared datasets.
      examples: images to keep, as they were before `appearance`.
      appearance: changes images before anything else is done with them.

    Raises:
      UserError: the domain is not prepared, or a record is corrupt: a score over a part of the images is no score.
    """
    classes = len(domain.classes)
    source = PreparedSplit(domain.name, split, data_dir)
    first, past = (len(source) * part // jax.process_count() for part in (jax.process_index(), jax.process_index() + 1))
    share = range(first, past)
    progress = Progress(len(share), "images")
    confusion = np.zeros((classes, classes), np.int64)
    kept = Examples(examples)
    for record, predicted in _predictions(windows, source, share, domain, split, appearance):
        confusion += metrics.confusion(record["label"], predicted, classes)
        kept.add(record, predicted)
        progress.advance(note=domain.name)
    return DomainResult(parallel.sum_over_processes(confusion), *kept.arrays())


def _predictions(
    windows: SlidingWindows, source: Source, numbers: range, domain: Domain, split: str, appearance: Appearance
) -> Iterator[tuple[Record, UInt8[np.ndarray, "_ _"]]]:
    """Every record with its predicted classes, as the benchmark scores it.

    The image is resized, windows are slid over it, and the scores are resized back: labels keep their size.
    """
    classes, largest = len(domain.classes), domain.sizes[split]
    waiting: dict[int, Record] = {}

    def images() -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        for position, number in enumerate(numbers):
            record = check_labels(source[number], classes)
            size = record["label"].shape
            if any(found > stated for found, stated in zip(size, largest, strict=True)):
                raise UserError(
                    f"{domain.name}, split {split}: record {number} has size {size}, expected at most {largest}; "
                    "prepare the dataset again"
                )
            waiting[position] = record
            image = record["image"] if appearance is None else appearance(record["image"], number)
            yield resizing.resized_image(image, domain.resize)

    if domain.resize is None:
        for position, labels in windows.labels(images()):
            yield waiting.pop(position), labels
        return
    for position, scores in windows.scores(images()):
        record = waiting.pop(position)
        yield record, resizing.best_classes(scores, record["label"].shape)


class Examples:
    """The first images of a domain, all of one size, thinned to a side of at most `EXAMPLE_SIDE` pixels."""

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, record: Record, predicted: UInt8[np.ndarray, "h w"]) -> None:
        """Keeps an image if it is still wanted and has the size of those before it."""
        step = -(-max(predicted.shape) // EXAMPLE_SIDE)
        row = (record["image"][::step, ::step], record["label"][::step, ::step], predicted[::step, ::step])
        if len(self._kept) < self._count and (not self._kept or self._kept[0][1].shape == row[1].shape):
            self._kept.append(row)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, labels and predictions; without any, arrays of length 0."""
        if not self._kept:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8)
        images, labels, predictions = (np.stack(column) for column in zip(*self._kept, strict=True))
        return images, labels, predictions
