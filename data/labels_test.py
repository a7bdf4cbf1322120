"""Hand-computed train ids; unknown values are listed with their counts."""

import numpy as np
import pytest
from crossearth_data.labels import Colours, LabelRule, Mask, Numbers  # pyright: ignore[reportMissingImports]

from crossearth_jax.config import UserError

WHITE, BLUE, BLACK = (255, 255, 255), (0, 0, 255), (0, 0, 0)
COLOURS = {BLACK: 255, WHITE: 0, BLUE: 1}


def uint8(values):
    return np.array(values, np.uint8)


def assert_ids(rule, pixels, expected):
    assert isinstance(rule, LabelRule)
    found = rule.train_ids(uint8(pixels), "x")
    np.testing.assert_array_equal(found.ids, expected)
    return found.note


def test_numbers():
    rule = Numbers({0: 255, 1: 0, 7: 6})
    assert assert_ids(rule, [[0, 1], [7, 1]], [[255, 0], [6, 0]]) == ""
    expected = r"x\.png has the unknown label values 9 \(2 pixels\), 8 \(1 pixels\); expected 0, 1, 7$"
    with pytest.raises(UserError, match=expected):
        rule.train_ids(uint8([[9, 8], [1, 9]]), "x.png")
    with pytest.raises(UserError, match=r"x\.png contains colours, expected one class number per pixel"):
        rule.train_ids(uint8([[BLUE]]), "x.png")


def test_colours():
    assert assert_ids(Colours(COLOURS), [[WHITE, BLUE], [BLACK, BLUE]], [[0, 1], [255, 1]]) == ""
    grey = [[255, 0]]  # an image with three equal channels arrives as one
    assert_ids(Colours(COLOURS), grey, [[0, 255]])


def test_unknown_colours():
    pixels = uint8([[(252, 255, 0), (1, 2, 3), (252, 255, 0)], [(0, 0, 9), (0, 1, 9), WHITE]])
    expected = (
        r"x\.tif has the unknown label colours \(252, 255, 0\) \(2 pixels\), \(0, 0, 9\) \(1 pixels\), \(0, 1, 9\)"
        r" \(1 pixels\) and 1 more; expected \(0, 0, 0\), \(255, 255, 255\), \(0, 0, 255\); do this$"
    )
    with pytest.raises(UserError, match=expected):
        Colours(COLOURS, remedy="do this").train_ids(pixels, "x.tif")
    note = assert_ids(Colours(COLOURS, "ignored"), pixels, [[255, 255, 255], [255, 255, 0]])
    assert note == "83.3% of x has colours outside the palette; they are ignored"


def test_the_nearest_colour_is_taken_within_a_distance():
    rule = Colours(COLOURS, "nearest", remedy="do this")
    faded = [[(40, 43, 43), (212, 255, 255), (43, 42, 211), BLUE]]  # 72.8 from black, 43 from white, 74.5 from blue
    note = assert_ids(rule, faded, [[255, 0, 1, 1]])
    assert note == "75.0% of x has colours outside the palette, at most 75 away; the nearest ones are taken"
    with pytest.raises(
        UserError, match=r"x\.tif has the unknown label colours \(81, 0, 0\) \(1 pixels\); .*do this \(th"
    ):
        rule.train_ids(uint8([[(80, 0, 0), (81, 0, 0)]]), "x.tif")


def test_masks():
    assert_ids(Mask(threshold=127), [[0, 1, 127, 128, 255]], [[0, 0, 0, 1, 1]])
    assert_ids(Mask(threshold=127), [[0, 1]], [[0, 0]])  # the mask values are not detected per file
    assert_ids(Mask(bright=1), [[0, 1]], [[0, 1]])
    assert_ids(Mask(), [[0, 255]], [[0, 1]])
    assert_ids(Mask(), [[0, 0]], [[0, 0]])
    assert_ids(Mask(threshold=127), [[(255, 255, 130), (255, 255, 128), (140, 130, 120)]], [[1, 1, 0]])
    for rule, pixels, unknown in ((Mask(), [[0, 255, 3]], 3), (Mask(), [[0, 1]], 1), (Mask(bright=1), [[1, 255]], 255)):
        with pytest.raises(UserError, match=rf"x has the unknown label values {unknown} \(1 pixels\); expected 0, "):
            rule.train_ids(uint8(pixels), "x")
    with pytest.raises(UserError, match="x is drawn in colours, expected a black and white mask"):
        Mask(threshold=127).train_ids(uint8([[(255, 0, 0), BLACK]]), "x")


def test_what_an_indexed_picture_means():
    assert [rule.colours for rule in (Numbers({}), Colours({}), Mask(), Mask(bright=1))] == [False, True, True, False]
