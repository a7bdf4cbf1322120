"""Blending against one pass over the whole image (the exact oracle) and against hand-computed weights."""

import tracemalloc

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.mapping import mosaic
from crossearth_jax.mapping.mosaic import Tile, blend, make_plan, partition_of_unity


def all_tiles(plan):
    numbers = iter(range(len(plan)))
    for panel in range(plan.panels):
        for row in range(len(plan.tops)):
            for column in plan.columns(panel):
                yield Tile(panel, row, column, next(numbers))


def crops(plan, scores, valid):
    """(tile, scores, valid) of every window of an image scored at once; beyond the image nothing is valid."""
    height, width = plan.window
    scores = np.pad(scores, ((0, height), (0, width), (0, 0)), constant_values=-7)
    valid = np.pad(valid, ((0, height), (0, width)))
    for tile in all_tiles(plan):
        top, left = plan.tops[tile.row], plan.lefts[tile.column]
        inside = np.s_[top : top + height, left : left + width]
        yield tile, scores[inside], valid[inside]


def assemble(plan, blocks, classes):
    """The mosaic and how often each pixel was written."""
    mosaic, count = np.zeros((*plan.size, classes), np.float32), np.zeros(plan.size, int)
    for block in blocks:
        inside = np.s_[block.top : block.top + block.valid.shape[0], block.left : block.left + block.valid.shape[1]]
        mosaic[inside] = np.where(block.valid[..., None], block.scores, 0)
        count[inside] += block.valid
    return mosaic, count


def test_weights_of_two_windows_by_hand():
    # Both tapers are 0.5 1.5 1.5 0.5; where the windows overlap, the sums are 2 and 2.
    weights = partition_of_unity([0, 2], window=4, size=6)
    np.testing.assert_allclose(weights, [[1, 1, 0.75, 0.25], [0.25, 0.75, 1, 1]])


@pytest.mark.parametrize(("size", "window", "stride"), [(100, 32, 21), (33, 32, 32), (7, 16, 5), (97, 16, 1)])
def test_weights_sum_to_one(size, window, stride):
    plan = make_plan((size, size), window, stride, classes=1, sum_bytes=2**20)
    rows, _ = plan.weights
    total = np.zeros(size)
    for top, weight in zip(plan.tops, rows, strict=True):
        total[top : top + len(weight)] += weight
    assert (rows > 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "window", "stride", "multiple", "sum_bytes"),
    [
        ((100, 130), 32, 21, 1, 2**20),
        ((100, 130), 32, 21, 1, 0),  # panels of two windows
        ((100, 130), 32, 32, 16, 0),
        ((33, 200), 32, 1, 1, 0),
        ((20, 90), 32, 20, 16, 0),  # lower than the window: windows of 32 rows, 12 of them beyond the image
        ((5, 3), 64, 40, 16, 2**20),
        ((300, 40), 32, 30, 1, 2**20),  # rows of windows higher than a chunk
    ],
)
def test_mosaic_of_pixel_scores_is_the_whole_image(size, window, stride, multiple, sum_bytes):
    rng = np.random.default_rng(0)
    scores = rng.random((*size, 3), np.float32)
    valid = rng.random(size) < 0.9
    plan = make_plan(size, window, stride, multiple=multiple, classes=3, sum_bytes=sum_bytes)
    found, count = assemble(plan, blend(plan, crops(plan, scores, valid), 3), 3)
    np.testing.assert_array_equal(count, valid)
    np.testing.assert_allclose(found[valid], scores[valid], rtol=2e-6)


def test_panels_do_not_change_a_bit():
    rng = np.random.default_rng(1)
    size, valid = (60, 210), np.ones((32, 32), bool)
    plans = [make_plan(size, 32, 13, classes=2, sum_bytes=budget) for budget in (2**20, 32 * 80 * 2 * 4, 0)]
    assert [plan.panels for plan in plans] == [1, 3, 4]
    # Scores that differ between the windows over a pixel, as those of a network do.
    scores = rng.random((len(plans[0].tops), len(plans[0].lefts), 32, 32, 2), np.float32)
    mosaics = []
    for plan in plans:
        items = ((tile, scores[tile.row, tile.column], valid) for tile in all_tiles(plan))
        mosaics.append(assemble(plan, blend(plan, items, 2), 2)[0])
    np.testing.assert_array_equal(mosaics[0], mosaics[1])
    np.testing.assert_array_equal(mosaics[0], mosaics[2])


def test_windows_without_valid_pixels_may_be_missing():
    rng = np.random.default_rng(2)
    scores, valid = rng.random((200, 120, 2), np.float32), np.zeros((200, 120), bool)
    valid[3:9, 100:104] = valid[150:190, 5:40] = True  # several rows of windows in between have nothing
    plan = make_plan((200, 120), 32, 20, classes=2, sum_bytes=0)
    items = [item for item in crops(plan, scores, valid) if item[2].any()]
    assert len(items) < len(plan) / 2
    found, count = assemble(plan, blend(plan, items, 2), 2)
    np.testing.assert_array_equal(count, valid)
    np.testing.assert_allclose(found[valid], scores[valid], rtol=2e-6)


def blended_peak(size):
    """Bytes at the peak of blending, and pixels written."""
    plan = make_plan(size, 64, 64, classes=4, sum_bytes=64 * 600 * 4 * 4)
    window = np.ones((64, 64, 4), np.float32), np.ones((64, 64), bool)
    tracemalloc.start()
    blocks = [block.valid.shape for block in blend(plan, ((tile, *window) for tile in all_tiles(plan)), 4)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(height for height, _ in blocks) <= mosaic.CHUNK
    return peak, sum(height * width for height, width in blocks)


def test_memory_does_not_grow_with_the_scene():
    small, pixels = blended_peak((300, 1200))
    assert pixels == 300 * 1200
    large, pixels = blended_peak((3000, 3000))
    assert pixels == 3000 * 3000
    assert large < 64 * 600 * (4 * 4 + 1) + 2**18  # the sum, its mask and small change
    assert large < small * 1.2


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(40, 20, "multiple of 16"), (32, 33, "stride"), (32, 0, "stride"), (0, 1, "window")],
)
def test_windows_that_cannot_work(window, stride, message):
    with pytest.raises(UserError, match=message):
        make_plan((100, 100), window, stride, multiple=16, classes=1, sum_bytes=2**20)
