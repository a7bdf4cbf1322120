"""Confusion matrices worked out by hand, and the colour baseline on classes that differ in colour."""

import numpy as np
import pytest

from crossearth_jax.analysis import baselines
from crossearth_jax.benchmark import IGNORE
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.prepare import prepare_domains

SOURCE, TARGET = "blue_marble/temperate_brown", "blue_marble/tropical_brown"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare_domains([SOURCE, TARGET], folder)
    return folder


def test_majority_takes_the_most_frequent_class():
    classify = baselines.fit_majority(np.array([3, 1, 3, 1, 0], np.uint8))
    np.testing.assert_array_equal(classify(np.zeros((4, 3), np.uint8)), [1, 1, 1, 1])


def test_colour_separates_separable_colours():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20_000, 3), np.uint8)
    labels = np.where(pixels[:, 2] > 127, 4, np.where(pixels[:, 0] > 99, 2, 0)).astype(np.uint8)
    classify = baselines.fit_colour(pixels, labels)
    corners = np.array([[0, 9, 200], [255, 9, 200], [200, 255, 50], [50, 255, 50], [0, 9, 200]], np.uint8)
    np.testing.assert_array_equal(classify(corners), [4, 4, 2, 0, 4])
    assert (classify(pixels) == labels).mean() > 0.99


def test_labelled_pixels_leave_ignored_ones_out(data_dir):
    pixels, labels = baselines.sampled_pixels(SOURCE, "test", data_dir)
    source = PreparedSplit(SOURCE, "test", data_dir)
    expected = [
        (*example["image"][row, column].tolist(), int(example["label"][row, column]))
        for example in (source[i] for i in range(19))
        for row in range(32)
        for column in range(32)
        if example["label"][row, column] != IGNORE
    ]
    np.testing.assert_array_equal(np.column_stack([pixels, labels]), expected)


def test_of_many_pixels_every_image_gives_an_equal_share(data_dir):
    whole = list(baselines.labelled_pixels(SOURCE, "test", data_dir))
    pixels, labels = baselines.sampled_pixels(SOURCE, "test", data_dir, most=19 * 50)
    start = 0
    for image, truth in whole:
        count = min(50, len(truth))
        rows = {tuple(row) for row in np.column_stack([image, truth]).tolist()}
        found = np.column_stack([pixels[start : start + count], labels[start : start + count]])
        assert {tuple(row) for row in found.tolist()} <= rows
        start += count
    assert start == len(labels)


def test_confusions_of_real_domains(data_dir):
    found = baselines.confusions(SOURCE, [SOURCE, TARGET], data_dir)
    for target in (SOURCE, TARGET):
        _, truth = baselines.sampled_pixels(target, "test", data_dir)
        counts = np.bincount(truth, minlength=5)
        # Rows are the truth; shrub_grass (2) is the majority of the source.
        np.testing.assert_array_equal(found["majority"][target], counts[:, None] * (np.arange(5) == 2))
        np.testing.assert_array_equal(found["colour"][target].sum(axis=1), counts)
    again = baselines.confusions(SOURCE, [TARGET], data_dir)
    np.testing.assert_array_equal(again["colour"][TARGET], found["colour"][TARGET])
    accuracy = [np.trace(found["colour"][t]) / found["colour"][t].sum() for t in (SOURCE, TARGET)]
    # The trees' splits may move with the version of scikit-learn.
    np.testing.assert_allclose(accuracy, [0.720, 0.726], atol=0.02)
