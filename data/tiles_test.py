"""Hand-computed tilings."""

import pytest
from crossearth_data.tiles import Box, Cut, clipped_origins, even_origins  # pyright: ignore[reportMissingImports]


@pytest.mark.parametrize(
    ("length", "origins"),
    [
        (6000, [*range(0, 5121, 512), 5488]),  # Potsdam: 12 a side
        (1024, [0, 512]),
        (1025, [0, 512, 513]),
        (513, [0, 1]),
        (512, [0]),
        (300, [0]),
    ],
)
def test_clipped_origins(length, origins):
    assert clipped_origins(length, 512) == origins


@pytest.mark.parametrize("length", [512, 513, 1023, 1919, 2566, 3816, 6000])
def test_clipped_origins_are_what_the_strided_converter_leaves(length):
    """The converter makes as many boxes as for a stride of 256, at index x 512, and moves them back at the edge."""
    count = -(-(length - 512) // 256) + 1
    starts = [index * 512 for index in range(count)]
    boxes = {start + min(length - start - 512, 0) for start in starts}
    assert sorted(boxes) == clipped_origins(length, 512)


@pytest.mark.parametrize(
    ("length", "tile", "origins"),
    [
        (5000, 1000, [0, 1000, 2000, 3000, 4000]),
        (5000, 1024, [0, 994, 1988, 2982, 3976]),
        (1100, 1000, [0, 100]),
        (900, 1000, [0]),
    ],
)
def test_even_origins(length, tile, origins):
    assert even_origins(length, tile) == origins


def test_boxes_go_row_by_row_and_stay_inside():
    boxes = list(Cut(512).boxes(height=600, width=1100))
    assert boxes[:2] == [Box(0, 0, 512, 512), Box(512, 0, 1024, 512)]
    assert [(box.left, box.top) for box in boxes] == [(0, 0), (512, 0), (588, 0), (0, 88), (512, 88), (588, 88)]
    assert boxes[-1].slices == (slice(88, 600), slice(588, 1100))
    assert list(Cut(512).boxes(height=100, width=200)) == [Box(0, 0, 200, 100)]
