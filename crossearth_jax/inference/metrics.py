"""Segmentation metrics from confusion matrices.

A confusion matrix is an integer array (k, k) whose rows are true classes and whose columns are predicted classes.
Matrices of batches, images or domains can be added. All metrics are float64 fractions in [0, 1]; a metric of a class
is NaN where it is undefined. The calibration error is computed from counts that can be added in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

BINS = 15  # bins of equal width between the probabilities 0 and 1
UNIT = 1e-6  # sums of probabilities are counted in this unit as integers, which processes can add exactly


def confusion(
    labels: UInt8[np.ndarray, "*b"], predictions: UInt8[np.ndarray, "*b"], classes: int
) -> Int[np.ndarray, "k k"]:
    """Count the pixels of each (true class, predicted class) pair.

    Args:
      labels: true classes. Pixels whose label is not in 0 … classes - 1 (such as 255, ignored) are not counted.
      predictions: predicted classes, below `classes`.
      classes: number of classes.
    """
    kept = labels < classes
    pairs = labels[kept].astype(np.int64) * classes + predictions[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def accuracy(matrix: Int[np.ndarray, "k k"]) -> float:
    """Return the share of all pixels that are predicted correctly (aAcc); NaN for an empty matrix."""
    return float(_divide(np.trace(matrix), matrix.sum()))


def iou(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Return the intersection over union of each class; NaN for a class neither labelled nor predicted."""
    hits = np.diagonal(matrix)
    return _divide(hits, matrix.sum(0) + matrix.sum(1) - hits)


def precision(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Return the share of the pixels predicted as each class that are correct; NaN for a class never predicted."""
    return _divide(np.diagonal(matrix), matrix.sum(0))


def recall(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Return the share of the true pixels of each class that are predicted as it; NaN for a class without pixels.

    It is also called class accuracy.
    """
    return _divide(np.diagonal(matrix), matrix.sum(1))


def f_score(matrix: Int[np.ndarray, "k k"], beta: float = 1.0) -> Float[np.ndarray, " k"]:
    """Return the weighted harmonic mean of precision and recall of each class; with beta = 1 the Dice coefficient.

    It is computed from pixel counts. A class without a correct pixel therefore scores 0, where the formula from
    precision and recall gives 0 / 0. The value is NaN only for a class neither labelled nor predicted.
    """
    hits, weight = np.diagonal(matrix), beta**2
    return _divide((1 + weight) * hits, weight * matrix.sum(1) + matrix.sum(0))


def dice(matrix: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Return the Dice coefficient of each class; NaN for a class neither labelled nor predicted."""
    return f_score(matrix)


def mean(values: Float[np.ndarray, " k"], scored: Sequence[int] | None = None) -> float:
    """Return the mean over classes (mIoU, mAcc, …), without those that are NaN; NaN if all are.

    Args:
      values: a metric of each class.
      scored: ids of the classes to average; None means all.
    """
    values = values if scored is None else values[list(scored)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def reliability(
    labels: UInt8[np.ndarray, "*b"],
    predictions: UInt8[np.ndarray, "*b"],
    confidences: Float[np.ndarray, "t ..."],
    classes: int,
) -> Int[np.ndarray, "t 3 bins"]:
    """Count, for each temperature and bin of the confidence, what the calibration error is computed from.

    Args:
      labels: true classes. Pixels whose label is not in 0 … classes - 1 are not counted.
      predictions: predicted classes.
      confidences: probabilities of the predicted classes, at each temperature.
      classes: number of classes.

    Returns:
      Number of pixels, number of correct pixels, and sum of the confidences in units of `UNIT`. Counts of images or
      domains can be added. Bin i holds confidences in [i, i + 1) / `BINS`, the last one also 1.
    """
    kept = labels < classes
    correct = (labels[kept] == predictions[kept]).astype(np.float64)
    counts = np.zeros((len(confidences), 3, BINS), np.int64)
    for found, values in zip(counts, confidences[:, kept], strict=True):
        bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
        found[0] = np.bincount(bins, minlength=BINS)
        found[1] = np.bincount(bins, correct, BINS)
        found[2] = np.rint(np.bincount(bins, values, BINS) / UNIT)
    return counts


def calibration_error(counts: Int[np.ndarray, "3 bins"]) -> float:
    """Return the expected calibration error, a fraction in [0, 1]; NaN without pixels.

    It is the mean over the pixels of |share of correct pixels - mean confidence| of their bin (Naeini et al. 2015).
    """
    pixels, correct, confidence = counts.astype(np.float64)
    total = pixels.sum()
    return float(np.abs(correct - confidence * UNIT).sum() / total) if total else float("nan")


def _divide(numerator: np.ndarray | np.integer, denominator: np.ndarray | np.integer) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    nothing = np.full(denominator.shape, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
