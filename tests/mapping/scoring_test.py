"""Batching, reading ahead and flips."""

import threading

import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.mapping.mosaic import Tile
from crossearth_jax.mapping.scoring import ahead, score_tiles, with_flips


def windows(count, side=4):
    rng = np.random.default_rng(0)
    return [
        (Tile(0, 0, i, i), rng.integers(0, 255, (side, side, 3), np.uint8), np.ones((side, side), bool))
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (6, 3), (2, 5), (1, 1), (0, 4)])
def test_every_batch_has_the_same_shape(rule, count, batch):
    given = windows(count)
    found = list(score_tiles(rule.score, 4, iter(given), batch))
    assert set(rule.shapes) <= {(batch, 4, 4, 3)} and len(rule.shapes) == -(-count // batch)
    assert [tile.number for tile, *_ in found] == list(range(count))
    for (_, image, _), (_, scores, _) in zip(given, found, strict=True):
        np.testing.assert_array_equal(scores, rule.score(image[None])[0])


def test_the_next_batch_starts_before_one_is_fetched():
    events = []

    class Result:
        def __init__(self, number):
            self.number, self.shape = number, (2, 4, 4, 1)
            events.append(f"start {number}")

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.zeros(self.shape, np.float32)

    numbers = iter(range(9))
    list(score_tiles(lambda _: Result(next(numbers)), 1, iter(windows(6)), 2))
    assert events == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_wrong_number_of_classes(rule):
    with pytest.raises(UserError, match="scores 4 classes but 6 are named"):
        list(score_tiles(rule.score, 6, iter(windows(2)), 2))


def test_flips_average_the_mirror_images():
    ramp = np.arange(6, dtype=np.float32).reshape(2, 3)

    def score(images):  # depends on the place in the window
        return images[..., :1] * ramp[..., None]

    images = np.random.default_rng(1).integers(0, 9, (2, 2, 3, 3), np.uint8)
    # Mirrored back, the ramp and its mirror images average to its mean 2.5 everywhere.
    np.testing.assert_allclose(with_flips(score)(images), images[..., :1] * 2.5)


def test_ahead_keeps_order_works_in_a_thread_and_passes_errors_on():
    threads = set()

    def items():
        for i in range(5):
            threads.add(threading.current_thread())
            yield i
        raise UserError("broken")

    taken = []
    with pytest.raises(UserError, match="broken"):
        for item in ahead(items()):
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]
    assert threading.main_thread() not in threads
