"""Classes, margin and entropy worked out by hand."""

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.inference.windows import ScoredArea
from crossearth_jax.mapping.map_layers import NODATA, Legend, classes, confidence, confidence_layer, score_layer

RED, GREEN = (255, 0, 0), (0, 255, 0)


def area(scores, valid):
    return ScoredArea(0, 0, np.array(scores, np.float32)[None], np.array(valid)[None])


def test_classes():
    scores = [[1, 3, 2], [2, 2, 1], [9, 0, 0]]
    np.testing.assert_array_equal(classes(area(scores, [True, True, False])), [[1, 0, NODATA]])


def test_confidence_of_shares():
    scores = np.array([[[2, 0, 0], [1, 1, 1], [0, 3, 1], [0, 0, 0]]], np.float32)
    margin, entropy, probability = confidence(scores)
    np.testing.assert_allclose(margin[0], [1, 0, 0.5, 0], atol=1e-6)
    # Shares 3/4 and 1/4 of three classes: (3/4 ln 4/3 + 1/4 ln 4) / ln 3 = 0.511860.
    np.testing.assert_allclose(entropy[0], [0, 1, 0.511860, 1], atol=1e-6)
    np.testing.assert_allclose(probability[0], [1, 1 / 3, 0.75, 1 / 3], atol=1e-6)
    # Temperature 2: the square roots of 3 and 1, divided by their sum.
    np.testing.assert_allclose(confidence(scores, 2.0)[2, 0, 2], 3**0.5 / (3**0.5 + 1), atol=2e-6)


def test_confidence_of_a_single_class():
    found = confidence(np.ones((1, 2, 1), np.float32), temperature=2.0)
    np.testing.assert_array_equal(found, [[[1, 1]], [[0, 0]], [[1, 1]]])


def test_layers_are_blank_where_nothing_is_valid():
    legend = Legend(("a", "b"), (RED, GREEN))
    values = score_layer(legend).values(area([[1, 3], [5, 2]], [False, True]))
    np.testing.assert_array_equal(values, [[[np.nan, 5]], [[np.nan, 2]]])
    margin, entropy, _ = confidence_layer(1.0).values(area([[1, 3], [5, 0]], [False, True]))
    np.testing.assert_allclose(margin, [[np.nan, 1]])
    np.testing.assert_allclose(entropy, [[np.nan, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        ((), (), "has 0 classes"),
        (("x",) * 256, (RED,) * 256, "has 256 classes"),
        (("a", "b"), (RED,), "1 colours for 2"),
    ],
)
def test_legends_that_fit_no_map(names, palette, message):
    with pytest.raises(UserError, match=message):
        Legend(names, palette)
