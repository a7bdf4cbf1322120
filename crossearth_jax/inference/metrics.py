"""Segmentation metrics from confusion matrices.

A confusion matrix is an integer array (k, k), rows the truth and columns the prediction; matrices of batches, images
or domains add. All metrics are float64 fractions, per class NaN where undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

Metric = Callable[[np.ndarray], np.ndarray]


def confusion(
    labels: UInt8[np.ndarray, "*b"], predictions: UInt8[np.ndarray, "*b"], classes: int
) -> Int[np.ndarray, "k k"]:
    """Counts the pixels of each (true, predicted) pair of classes.

    Args:
      labels: true classes. Pixels with another value than 0 … classes - 1 (255: ignored) are left out.
      predictions: predicted classes, below `classes`.
      classes: how many there are.
    """
    kept = labels < classes
    pairs = labels[kept].astype(np.int64) * classes + predictions[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def accuracy(matrix: Int[np.ndarray, "k k"]) -> float:
    """Share of all pixels that are right (aAcc); NaN for an empty matrix."""
    return float(_divide(np.trace(matrix), matrix.sum()))


def iou(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Intersection over union of each class; NaN for a class neither labelled nor predicted."""
    hits = np.diagonal(matrix)
    return _divide(hits, matrix.sum(0) + matrix.sum(1) - hits)


def precision(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Share of each class's predicted pixels that are right; NaN for a class never predicted."""
    return _divide(np.diagonal(matrix), matrix.sum(0))


def recall(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Share of each class's true pixels that are found (class accuracy); NaN for a class without any."""
    return _divide(np.diagonal(matrix), matrix.sum(1))


def f_score(matrix: Int[np.ndarray, "k k"], beta: float = 1.0) -> Float[np.ndarray, " k"]:
    """Weighted harmonic mean of precision and recall of each class; with beta 1 the Dice coefficient.

    Defined by counts, so that a class without a hit scores 0 where the formula from precision and recall has 0 / 0;
    NaN only for a class neither labelled nor predicted.
    """
    hits, weight = np.diagonal(matrix), beta**2
    return _divide((1 + weight) * hits, weight * matrix.sum(1) + matrix.sum(0))


def dice(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Dice coefficient of each class; NaN for a class neither labelled nor predicted."""
    return f_score(matrix)


def mean(values: Float[np.ndarray, " k"], scored: Sequence[int] | None = None) -> float:
    """Mean over the classes with a value (mIoU, mAcc, …), of all classes or of those with the `scored` numbers.

    NaN if none has a value.
    """
    values = values if scored is None else values[list(scored)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def grouped_mean(matrices: Mapping[str, Int[np.ndarray, "k k"]], metric: Metric = iou) -> float:
    """Mean over groups (domains) of each group's class mean: every group counts the same, whatever its size.

    CrossEarth's grouped metric averages values already rounded to 0.01 %; this one does not round.
    """
    return mean(np.array([mean(metric(matrix)) for matrix in matrices.values()]))


def _divide(numerator: np.ndarray | np.integer, denominator: np.ndarray | np.integer) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    nothing = np.full(denominator.shape, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
