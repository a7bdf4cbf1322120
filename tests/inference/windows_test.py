"""Windows and weights by hand; blended scores compared with a plain loop and with scoring the whole image at once."""

import threading
import tracemalloc

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.inference import windows
from crossearth_jax.inference.windows import ImageRaster, SlidingWindows, window_starts, window_weights


class SpeckledRaster:
    """An image with invalid pixels."""

    def __init__(self, image, valid):
        self.image, self.valid, self.size = image, valid, valid.shape

    def read(self, top, left, height, width):
        image, valid = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), bool)
        part = self.image[top : top + height, left : left + width]
        inside = np.s_[: part.shape[0], : part.shape[1]]
        image[inside], valid[inside] = part, self.valid[top : top + height, left : left + width]
        return image, valid


def own_colour(images, valid):
    """Score each pixel by its own colour."""
    return images.astype(np.float32)


def by_place(images, valid):
    """Scores that depend on the position in the window, like those of a network."""
    ramp = np.linspace(0.1, 1, images.shape[1] * images.shape[2], dtype=np.float32).reshape(images.shape[1:3])
    return images * ramp[..., None]


def engine(score=own_colour, **options):
    return SlidingWindows(**{"score": score, "classes": 3, "window": 32, "stride": 21, "batch_size": 5} | options)


def random_image(*size, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (*size, 3), np.uint8)


def assembled(found, size, classes=3):
    """The blended scores, and how often each pixel was yielded."""
    scores, count = np.zeros((*size, classes), np.float32), np.zeros(size, int)
    for area in found:
        inside = np.s_[area.top : area.top + area.valid.shape[0], area.left : area.left + area.valid.shape[1]]
        scores[inside] = np.where(area.valid[..., None], area.scores, 0)
        count[inside] += area.valid
    return scores, count


def plain_loop(image, score, window, stride, taper):
    """Overlapping windows added to one float64 array and divided by the sum of their weights."""
    height, width = image.shape[:2]
    profile = np.minimum(np.arange(window) + 0.5, window - np.arange(window) - 0.5) if taper else np.ones(window)
    total, weights = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for top in sorted({*range(0, height - window, stride), height - window}):
        for left in sorted({*range(0, width - window, stride), width - window}):
            inside = np.s_[top : top + window, left : left + window]
            total[inside] += score(image[inside][None], None)[0] * np.outer(profile, profile)[..., None]
            weights[inside] += np.outer(profile, profile)[..., None]
    return total / weights


@pytest.mark.parametrize(
    ("size", "window", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (513, 512, 341, [0, 1]),
        (1024, 512, 341, [0, 341, 512]),
        (100, 64, 43, [0, 36]),
        (107, 64, 43, [0, 43]),
        (48, 64, 43, [0]),
        (3000, 1024, 683, [0, 683, 1366, 1976]),
    ],
)
def test_window_starts_by_hand(size, window, stride, starts):
    assert window_starts(size, window, stride) == starts


def test_weights_by_hand():
    np.testing.assert_array_equal(window_weights(4, "taper"), [0.5, 1.5, 1.5, 0.5])
    np.testing.assert_array_equal(window_weights(3, "mean"), [1, 1, 1])
    plan = engine(window=4, stride=2, blend="taper").plan((6, 4))
    np.testing.assert_array_equal(plan.weight_sums[0], [0.5, 1.5, 2, 2, 1.5, 0.5])
    np.testing.assert_array_equal(plan.weight_sums[1], [0.5, 1.5, 1.5, 0.5])


def test_overlaps_are_averaged_by_hand():
    # The score of a window is its mean: [0, 1, 2, 3] -> 1.5, [2, 3, 4, 5] -> 3.5; overlaps average both.
    image = np.tile(np.arange(6, dtype=np.uint8)[:, None, None], (1, 4, 3))

    def mean(images, valid):
        return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape).astype(np.float32)

    ((position, scores),) = engine(mean, window=4, stride=2).scores([image])
    assert position == 0
    np.testing.assert_array_equal(scores[:, 0, 0], [1.5, 1.5, 2.5, 2.5, 3.5, 3.5])
    ((_, tapered),) = engine(mean, window=4, stride=2, blend="taper").scores([image])
    # Weights 1.5 and 0.5 in row 2: (1.5 * 1.5 + 3.5 * 0.5) / 2.
    np.testing.assert_allclose(tapered[:, 0, 0], [1.5, 1.5, 2.0, 3.0, 3.5, 3.5])


@pytest.mark.parametrize("blend", ["mean", "taper"])
@pytest.mark.parametrize(("size", "window", "stride"), [((100, 130), 32, 21), ((33, 50), 32, 32), ((70, 64), 64, 7)])
def test_blend_equals_a_plain_loop(size, window, stride, blend):
    image = random_image(*size)
    ((_, scores),) = engine(by_place, window=window, stride=stride, blend=blend).scores([image])
    expected = plain_loop(image, by_place, window, stride, blend == "taper")
    np.testing.assert_allclose(scores, expected, rtol=2e-6)


@pytest.mark.parametrize("blend", ["mean", "taper"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "multiple", "sum_bytes"),
    [
        ((100, 130), 32, 21, 1, 2**20),
        ((100, 130), 32, 21, 1, 0),  # panels of two windows
        ((100, 130), 32, 32, 16, 0),
        ((33, 200), 32, 1, 1, 0),
        ((20, 90), 32, 20, 16, 0),  # lower than the window: windows of 32 rows, 12 of which lie outside the image
        ((5, 3), 64, 40, 16, 2**20),
        ((300, 40), 32, 30, 1, 2**20),  # finished areas higher than AREA_ROWS
    ],
)
def test_scores_of_single_pixels_give_the_whole_image(size, window, stride, multiple, sum_bytes, blend):
    image, valid = random_image(*size), np.random.default_rng(1).random(size) < 0.9
    found = engine(window=window, stride=stride, multiple=multiple, sum_bytes=sum_bytes, blend=blend).areas(
        SpeckledRaster(image, valid)
    )
    scores, count = assembled(found, size)
    np.testing.assert_array_equal(count, valid)
    np.testing.assert_allclose(scores[valid], image[valid], rtol=2e-6)


def test_panels_do_not_change_a_bit():
    image = random_image(60, 210, seed=1)
    engines = [engine(by_place, stride=13, sum_bytes=budget) for budget in (2**20, 32 * 80 * 3 * 4, 0)]
    assert [one.plan((60, 210)).panels for one in engines] == [1, 3, 4]
    results = [assembled(one.areas(ImageRaster(image)), (60, 210)) for one in engines]
    for scores, count in results:
        np.testing.assert_array_equal(scores, results[0][0])
        assert (count == 1).all()


def test_windows_without_valid_pixels_are_not_scored():
    image, valid = random_image(200, 120), np.zeros((200, 120), bool)
    valid[3:9, 100:104] = valid[150:190, 5:40] = True  # several rows of windows in between have no valid pixel
    scored, steps = [], []

    def score(images, mask):
        scored.extend(mask.any(axis=(1, 2)))
        return own_colour(images, mask)

    one = engine(score, stride=20, sum_bytes=0)
    scores, count = assembled(one.areas(SpeckledRaster(image, valid), steps.append), valid.shape)
    np.testing.assert_array_equal(count, valid)
    np.testing.assert_array_equal(scores[valid], image[valid])
    assert sum(scored) < len(one.plan(valid.shape)) / 2
    assert sum(steps) == len(one.plan(valid.shape))
    assert list(one.areas(SpeckledRaster(image, np.zeros_like(valid)))) == []


def test_images_of_several_sizes_share_batches_of_one_shape():
    shapes = []

    def score(images, valid):
        shapes.append(images.shape)
        return own_colour(images, valid)

    sizes = [(40, 50), (20, 20), (33, 32), (20, 20), (64, 64)]
    images = [random_image(*size, seed=i) for i, size in enumerate(sizes)]
    found = dict(engine(score, multiple=4).scores(images))
    assert set(shapes) == {(5, 32, 32, 3), (5, 20, 20, 3)}
    for position, image in enumerate(images):
        np.testing.assert_array_equal(found[position], image)
    for position, labels in engine(multiple=4).labels(images):
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, images[position].argmax(-1))


def test_the_last_batch_is_filled_up_and_short_axes_are_marked_invalid():
    given = []

    def score(images, valid):
        given.append((images, valid))
        return own_colour(images, valid)

    list(engine(score, multiple=16, batch_size=4).scores([random_image(18, 70)]))
    ((images, valid),) = given
    assert images.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(valid[:3].any(-1), [[True] * 18 + [False] * 14] * 3)
    assert not valid[3].any() and not images[:3, 18:].any()


def test_the_next_batch_starts_before_one_is_fetched():
    events = []

    class Result:
        def __init__(self, number):
            self.number, self.shape = number, (2, 4, 4, 3)
            events.append(f"start {number}")

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.zeros(self.shape, np.float32)

    numbers = iter(range(9))
    one = engine(lambda *_: Result(next(numbers)), window=4, stride=4, batch_size=2)
    list(one.scores([random_image(4, 24)]))
    assert events == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_reading_happens_in_a_thread_that_ends_and_passes_errors_on():
    threads = set()

    class Broken:
        size = (100, 40)

        def read(self, top, left, height, width):
            threads.add(threading.current_thread())
            if top > 30:
                raise UserError("cannot read")
            return ImageRaster(random_image(*self.size)).read(top, left, height, width)

    with pytest.raises(UserError, match="cannot read"):
        list(engine().areas(Broken()))
    assert threading.main_thread() not in threads and not any(thread.is_alive() for thread in threads)


def blended_peak(size):
    """Peak memory of blending in bytes, and the number of pixels yielded."""

    class Blank:
        def __init__(self):
            self.size = size

        def read(self, top, left, height, width):
            return np.ones((height, width, 3), np.uint8), np.ones((height, width), bool)

    one = engine(window=64, stride=64, sum_bytes=64 * 600 * 3 * 4)
    assert len(list(one.areas(Blank()))) > 0  # allocates what NumPy and the thread pool keep
    tracemalloc.start()
    areas = [area.valid.shape for area in one.areas(Blank())]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(height for height, _ in areas) <= windows.AREA_ROWS
    return peak, sum(height * width for height, width in areas)


def test_memory_does_not_grow_with_the_raster():
    small, pixels = blended_peak((300, 1200))
    assert pixels == 300 * 1200
    large, pixels = blended_peak((3000, 3000))
    assert pixels == 3000 * 3000
    assert large < small * 1.2


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(40, 20, "multiple of 16"), (32, 33, "stride is 33"), (32, 0, "stride"), (0, 1, "window")],
)
def test_windows_that_cannot_work(window, stride, message):
    with pytest.raises(UserError, match=message):
        engine(window=window, stride=stride, multiple=16)


def test_wrong_number_of_classes():
    with pytest.raises(UserError, match="scores 3 classes but 6 are named"):
        list(engine(classes=6).scores([random_image(40, 40)]))
