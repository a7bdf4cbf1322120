"""Hand-computed windows and the label check."""

import numpy as np
import pytest

from crossearth_jax.benchmark import IGNORE
from crossearth_jax.config import UserError
from crossearth_jax.inputs.transforms import check_labels, window


def numbered(height, width):
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.stack([label, label + 1, label + 2], -1), label


@pytest.mark.parametrize(
    ("position", "first"),
    [((0.0, 0.0), 0), ((0.999, 0.0), 10), ((0.0, 0.999), 3), ((0.5, 0.5), 5 + 2), ((1.0, 1.0), 13)],
)
def test_window_lies_at_its_position(position, first):
    image, label = numbered(4, 5)  # 3 x 4 possible positions
    cut_image, cut_label = window(image, label, (2, 2), position)
    expected = first + np.array([[0, 1], [5, 6]])
    np.testing.assert_array_equal(cut_label, expected)
    np.testing.assert_array_equal(cut_image, np.stack([expected, expected + 1, expected + 2], -1))


def test_a_short_side_is_padded_at_its_end():
    image, label = numbered(1, 3)
    cut_image, cut_label = window(image, label, (2, 2), (0.0, 0.999))
    np.testing.assert_array_equal(cut_label, [[1, 2], [IGNORE, IGNORE]])
    np.testing.assert_array_equal(cut_image[..., 0], [[1, 2], [1, 2]])  # the border, repeated


def test_a_window_of_the_whole_image_is_the_image():
    image, label = numbered(3, 3)
    for position in ((0.0, 0.0), (0.7, 1.0)):
        cut_image, cut_label = window(image, label, (3, 3), position)
        np.testing.assert_array_equal(cut_image, image)
        np.testing.assert_array_equal(cut_label, label)


def test_every_position_is_equally_likely():
    image, label = numbered(1, 4)
    places = (np.arange(300) + 0.5) / 300
    firsts = [int(window(image, label, (1, 2), (0.0, float(place)))[1][0, 0]) for place in places]
    np.testing.assert_array_equal(np.bincount(firsts), [100, 100, 100])


def example(label):
    return {
        "image": np.zeros((*label.shape, 3), np.uint8),
        "label": label,
        "index": 7,
        "id": "tile_7",
        "domain": "some/domain",
    }


def test_known_labels_pass():
    known = example(np.array([[0, 4, IGNORE]], np.uint8))
    assert check_labels(known, 5) is known


def test_unknown_labels_are_named():
    with pytest.raises(UserError, match=r"some/domain: record 7 \('tile_7'\).*\[5, 17\].*0\.\.4 or 255"):
        check_labels(example(np.array([[5, 17, 0, 5]], np.uint8)), 5)
