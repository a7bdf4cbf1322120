"""Figures of images and predictions, checked by the arrays that Matplotlib draws."""

import numpy as np
import pytest

from crossearth_jax.reporting.image_grids import coloured, image_grid, prediction_grid

COLOURS = {"sea": (1, 2, 3), "wood": (40, 50, 60)}
IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
LABELS = np.array([[0, 1], [255, 1]], np.uint8)


def shown(figure):
    """The arrays that the axes of a figure show, row by row; empty axes are left out."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_labels_take_the_colours_of_their_classes_and_ignored_ones_are_white():
    assert coloured(LABELS, COLOURS).tolist() == [[[1, 2, 3], [40, 50, 60]], [[255, 255, 255], [40, 50, 60]]]


def test_grid_has_a_column_per_caption():
    figure = image_grid({"first": IMAGES, "second": IMAGES / 255})
    assert [axes.get_title() for axes in figure.axes] == ["first", "second", "", ""]
    for found, wanted in zip(shown(figure), (IMAGES[0], IMAGES[0] / 255, IMAGES[1], IMAGES[1] / 255), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_columns_must_have_the_same_length():
    with pytest.raises(ValueError, match="columns of different lengths"):
        image_grid({"first": IMAGES, "second": IMAGES[:1]})


def test_predictions_stand_beside_the_truth_and_every_class_is_named():
    predictions = np.zeros((1, 2, 2), np.uint8)
    figure = prediction_grid(IMAGES[:1, :2, :2], LABELS[None], predictions, COLOURS)
    np.testing.assert_array_equal(shown(figure)[1], coloured(LABELS, COLOURS))
    np.testing.assert_array_equal(shown(figure)[2], coloured(predictions[0], COLOURS))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(COLOURS)
