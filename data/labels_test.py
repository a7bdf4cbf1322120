"""Labels to train ids, by hand; unknown values are named and counted."""

import numpy as np
import pytest
from crossearth_data.labels import Colours, Mask, Numbers  # pyright: ignore[reportMissingImports]

from crossearth_jax.config import UserError

WHITE, BLUE, BLACK = (255, 255, 255), (0, 0, 255), (0, 0, 0)
COLOURS = {BLACK: 255, WHITE: 0, BLUE: 1}


def uint8(values):
    return np.array(values, np.uint8)


def test_numbers():
    rule = Numbers({0: 255, 1: 0, 7: 6})
    np.testing.assert_array_equal(rule.train_ids(uint8([[0, 1], [7, 1]]), "x.png"), [[255, 0], [6, 0]])
    expected = r"x\.png has the unknown label values 9 \(2 pixels\), 8 \(1 pixels\); expected 0, 1, 7$"
    with pytest.raises(UserError, match=expected):
        rule.train_ids(uint8([[9, 8], [1, 9]]), "x.png")
    with pytest.raises(UserError, match=r"x\.png holds colours, expected one class number per pixel"):
        rule.train_ids(uint8([[BLUE]]), "x.png")


def test_colours():
    np.testing.assert_array_equal(
        Colours(COLOURS).train_ids(uint8([[WHITE, BLUE], [BLACK, BLUE]]), "x"), [[0, 1], [255, 1]]
    )
    grey = uint8([[255, 0]])  # what is left of an image with three equal channels
    np.testing.assert_array_equal(Colours(COLOURS).train_ids(grey, "x"), [[0, 255]])


def test_unknown_colours():
    pixels = uint8([[(252, 255, 0), (1, 2, 3), (252, 255, 0)], [(0, 0, 9), (0, 1, 9), WHITE]])
    expected = (
        r"x\.tif has the unknown label colours \(252, 255, 0\) \(2 pixels\), \(0, 0, 9\) \(1 pixels\), \(0, 1, 9\)"
        r" \(1 pixels\) and 1 more; expected \(0, 0, 0\), \(255, 255, 255\), \(0, 0, 255\); do this$"
    )
    with pytest.raises(UserError, match=expected):
        Colours(COLOURS, remedy="do this").train_ids(pixels, "x.tif")
    ignored = Colours(COLOURS, ignore_unknown=True).train_ids(pixels, "x.tif")
    np.testing.assert_array_equal(ignored, [[255, 255, 255], [255, 255, 0]])


def test_masks():
    np.testing.assert_array_equal(Mask(127).train_ids(uint8([[0, 127, 128, 255]]), "x"), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(Mask(127).train_ids(uint8([[0, 1]]), "x"), [[0, 1]])
    np.testing.assert_array_equal(Mask(None).train_ids(uint8([[0, 255]]), "x"), [[0, 1]])
    np.testing.assert_array_equal(Mask(None).train_ids(uint8([[0, 0]]), "x"), [[0, 0]])
    coloured = uint8([[(255, 255, 130), (255, 255, 120)]])
    np.testing.assert_array_equal(Mask(127).train_ids(coloured, "x"), [[1, 0]])
    with pytest.raises(UserError, match=r"x has the unknown label values 3 \(1 pixels\); expected 0, 255"):
        Mask(None).train_ids(uint8([[0, 255, 3]]), "x")
