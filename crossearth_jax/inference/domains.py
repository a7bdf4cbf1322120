"""Scoring of one domain: the confusion matrix of a model on all its images, and a few examples for the report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from crossearth_jax.benchmark import Domain
from crossearth_jax.config import UserError
from crossearth_jax.inference import metrics, resizing
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit, Record, Source
from crossearth_jax.inputs.transforms import check_labels
from crossearth_jax.ops.probabilities import best_probabilities
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.progress import Progress

# A function of an image and its record number that returns the image with changed appearance; None changes nothing.
Appearance = Callable[[UInt8[np.ndarray, "h w 3"], int], UInt8[np.ndarray, "h w 3"]] | None

EXAMPLE_SIDE = 512  # longest side in pixels of the example images that are kept for the report


@dataclasses.dataclass(frozen=True)
class DomainResult:
    """The result of scoring one domain."""

    confusion: Int[np.ndarray, "k k"]  # int64; rows are true classes, columns predicted ones
    images: UInt8[np.ndarray, "n h w 3"]  # examples, with their labels and predictions
    labels: UInt8[np.ndarray, "n h w"]
    predictions: UInt8[np.ndarray, "n h w"]
    reliability: Int[np.ndarray, "t 3 bins"]  # see `metrics.reliability`; for each of the temperatures


def score_domain(
    windows: SlidingWindows,
    domain: Domain,
    split: str,
    data_dir: str,
    examples: int = 0,
    appearance: Appearance = None,
    temperatures: Sequence[float] = (),
) -> DomainResult:
    """Score every image of one split of a domain; all processes of a run call it together.

    Each process scores its share of the images on its own devices. At the end the confusion matrices of all processes
    are summed; the examples stay those of the process.

    Args:
      windows: applies the model.
      domain: the domain to score.
      split: name of the split.
      data_dir: folder of the prepared datasets.
      examples: number of images to keep; they are kept without the change of `appearance`.
      appearance: is applied to every image before resizing and scoring.
      temperatures: those at which the probabilities of the predicted classes are compared with the labels.

    Raises:
      UserError: the domain is not prepared, or a record is corrupt. Corrupt records are not skipped, since a score
        over part of the images is not comparable.
    """
    classes = len(domain.classes)
    source = PreparedSplit(domain.name, split, data_dir)
    first, past = (len(source) * part // jax.process_count() for part in (jax.process_index(), jax.process_index() + 1))
    share = range(first, past)
    progress = Progress(len(share), "images")
    confusion = np.zeros((classes, classes), np.int64)
    reliability = np.zeros((len(temperatures), 3, metrics.BINS), np.int64)
    kept = Examples(examples)
    for record, predicted, confidences in _predictions(windows, source, share, domain, split, appearance, temperatures):
        confusion += metrics.confusion(record["label"], predicted, classes)
        reliability += metrics.reliability(record["label"], predicted, confidences, classes)
        kept.add(record, predicted)
        progress.advance(note=domain.name)
    images, labels, predictions = kept.arrays()
    return DomainResult(
        parallel.sum_over_processes(confusion), images, labels, predictions, parallel.sum_over_processes(reliability)
    )


def _predictions(
    windows: SlidingWindows,
    source: Source,
    numbers: range,
    domain: Domain,
    split: str,
    appearance: Appearance,
    temperatures: Sequence[float],
) -> Iterator[tuple[Record, UInt8[np.ndarray, "_ _"], Float[np.ndarray, "t _ _"]]]:
    """Yield every record with its predicted classes and their probabilities, by the protocol of the benchmark.

    The image is resized and scored with the sliding window, then the scores are resized to the size of the label.
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
        for position, found in windows.assembled(images(), functools.partial(_best, temperatures=temperatures)):
            yield waiting.pop(position), found["label"], np.moveaxis(found["confidence"], -1, 0)
        return
    for position, scores in windows.scores(images()):
        record = waiting.pop(position)
        yield record, *resizing.best_classes(scores, record["label"].shape, temperatures)


def _best(scores: Float[np.ndarray, "h w k"], temperatures: Sequence[float]) -> Shaped[np.ndarray, "h w"]:
    """Return label and confidence at each temperature as one structured array."""
    best = np.empty(scores.shape[:2], [("label", np.uint8), ("confidence", np.float32, len(temperatures))])
    best["label"] = scores.argmax(-1)
    best["confidence"] = np.moveaxis(best_probabilities(scores, temperatures), 0, -1)
    return best


class Examples:
    """Collects the first images of a domain, all of one size, subsampled to at most `EXAMPLE_SIDE` pixels a side."""

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, record: Record, predicted: UInt8[np.ndarray, "h w"]) -> None:
        """Keep an image unless enough are kept or its size differs from those kept before."""
        step = -(-max(predicted.shape) // EXAMPLE_SIDE)
        row = (record["image"][::step, ::step], record["label"][::step, ::step], predicted[::step, ::step])
        if len(self._kept) < self._count and (not self._kept or self._kept[0][1].shape == row[1].shape):
            self._kept.append(row)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return images, labels and predictions as arrays; they have length 0 if no image was kept."""
        if not self._kept:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8)
        images, labels, predictions = (np.stack(column) for column in zip(*self._kept, strict=True))
        return images, labels, predictions
