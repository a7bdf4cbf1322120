"""Metrics compared with the reference's numbers, and counting compared with NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest

from crossearth_jax.inference import metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "train"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "metric.npz")


@pytest.fixture(scope="module")
def matrices(golden):
    return [
        metrics.confusion(truth, predicted, 6) for truth, predicted in zip(golden["gt"], golden["pred"], strict=True)
    ]


def test_areas_of_each_image_equal_the_reference(golden, matrices):
    for i, matrix in enumerate(matrices):
        np.testing.assert_array_equal(np.diagonal(matrix), golden["intersect"][i])
        np.testing.assert_array_equal(matrix.sum(0), golden["pred_area"][i])
        np.testing.assert_array_equal(matrix.sum(1), golden["label_area"][i])


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (metrics.iou, "IoU"),
        (metrics.recall, "Acc"),
        (metrics.dice, "Dice"),
        (metrics.f_score, "Fscore"),
        (metrics.precision, "Precision"),
        (metrics.recall, "Recall"),
    ],
)
def test_class_metrics_equal_the_reference(metric, name, golden, matrices):
    summary = json.loads((GOLDEN / "metric.json").read_text())["rounded_summary"]
    values = metric(sum(matrices))
    # The reference computes in float32.
    np.testing.assert_allclose(values, golden[f"raw.{name}"], rtol=2e-7, atol=0)
    assert round(100 * metrics.mean(values), 2) == summary[f"m{name}"]


def test_accuracy_equals_the_reference(golden, matrices):
    np.testing.assert_allclose(metrics.accuracy(sum(matrices)), golden["raw.aAcc"], rtol=2e-7)


def test_grouped_means_equal_the_reference(matrices):
    grouped = json.loads((GOLDEN / "metric.json").read_text())["grouped"]
    groups = {"first": sum(matrices[:3]), "second": sum(matrices[3:])}
    for name, matrix in groups.items():
        assert round(100 * metrics.mean(metrics.iou(matrix)), 2) == grouped[f"{name}/_mIoU"]
        assert round(100 * metrics.mean(metrics.recall(matrix)), 2) == grouped[f"{name}/_mAcc"]
        assert round(100 * metrics.accuracy(matrix), 2) == grouped[f"{name}/_aAcc"]
    # The reference averages rounded group values, which differ by up to half a unit in their last place.
    for metric, name in ((metrics.iou, "mean_mIoU"), (metrics.recall, "mean_mAcc")):
        means = [100 * metrics.mean(metric(matrix)) for matrix in groups.values()]
        assert abs(sum(means) / 2 - grouped[name]) <= 0.005


def test_hand_computed_matrix():
    matrix = np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(metrics.iou(matrix), [3 / 6, 4 / 7, np.nan, np.nan])
    np.testing.assert_allclose(metrics.precision(matrix), [3 / 5, 4 / 5, np.nan, np.nan])
    np.testing.assert_allclose(metrics.recall(matrix), [3 / 4, 4 / 6, np.nan, np.nan])
    np.testing.assert_allclose(metrics.f_score(matrix, 2.0)[0], 5 * 0.6 * 0.75 / (4 * 0.6 + 0.75))
    assert metrics.accuracy(matrix) == 0.7
    assert metrics.mean(metrics.iou(matrix), [1, 2]) == 4 / 7
    assert np.isnan(metrics.mean(metrics.iou(matrix), [2, 3]))


def test_class_only_predicted_scores_zero_and_empty_matrix_nan():
    matrix = np.array([[0, 5], [0, 0]])
    np.testing.assert_array_equal(metrics.iou(matrix), [0, 0])
    np.testing.assert_array_equal(metrics.f_score(matrix), [0, 0])
    np.testing.assert_array_equal(metrics.recall(matrix), [0, np.nan])
    np.testing.assert_array_equal(metrics.precision(matrix), [np.nan, 0])
    assert np.isnan(metrics.accuracy(np.zeros((2, 2), int)))


def test_counting_leaves_ignored_pixels_out():
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, 16, 16))
    predictions = rng.integers(0, 3, (8, 16, 16), np.uint8)
    expected = np.array([[((labels == t) & (predictions == p)).sum() for p in range(3)] for t in range(3)])
    np.testing.assert_array_equal(metrics.confusion(labels, predictions, 3), expected)


def test_calibration_error_by_hand():
    """Two pixels at 0.95 of which one is correct, two at 0.5 of which both are, one ignored."""
    labels, predictions = np.array([0, 1, 2, 2, 255], np.uint8), np.array([0, 2, 2, 2, 1], np.uint8)
    confidences = np.array([[0.95, 0.95, 0.5, 0.5, 0.9], [1.0, 0.2, 0.2, 0.2, 0.9]], np.float32)
    counts = metrics.reliability(labels, predictions, confidences, 3)
    assert counts.shape == (2, 3, metrics.BINS) and counts[:, 0].sum(1).tolist() == [4, 4]
    # |1 - 1.9| + |2 - 1.0| pixels of 4; with the second temperature |1 - 1| + |2 - 0.6|.
    assert metrics.calibration_error(counts[0]) == pytest.approx((0.9 + 1.0) / 4, abs=1e-6)
    assert metrics.calibration_error(counts[1]) == pytest.approx(1.4 / 4, abs=1e-6)
    assert np.isnan(metrics.calibration_error(counts[0] * 0))


def test_bins_of_the_calibration_error():
    values = np.array([0.0, 1 / 15 - 1e-6, 1 / 15 + 1e-6, 0.999, 1.0], np.float32)
    zeros = np.zeros(5, np.uint8)
    ((pixels, correct, _),) = metrics.reliability(zeros, zeros, values[None], 2)
    assert pixels.tolist() == correct.tolist() == [2, 1, *[0] * 12, 2]
