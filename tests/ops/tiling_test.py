"""Windows by hand, and averaging checked with score functions that show where they looked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.ops import tiling


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
    assert tiling.window_starts(size, window, stride) == starts


def test_windows_go_row_by_row():
    assert tiling.windows((10, 5), 4, 3) == [(0, 0), (0, 1), (3, 0), (3, 1), (6, 0), (6, 1)]


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("size", [(10, 13), (3, 13), (4, 4)])
def test_scores_that_are_the_image_give_back_the_image(size, batch):
    images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    scores = jax.jit(lambda x: tiling.sliding_scores(lambda w: 2 * w[..., :2], x, 4, 3, batch))(images)
    np.testing.assert_allclose(scores, 2 * images[..., :2], atol=1e-6)


def test_overlaps_are_averaged_by_hand():
    # Each window scores its own mean: [0, 1, 2, 3] -> 1.5, [2, 3, 4, 5] -> 3.5, and both where they overlap.
    images = jnp.tile(jnp.arange(6.0)[None, :, None, None], (1, 1, 4, 3))
    mean = lambda w: jnp.broadcast_to(w.mean(axis=(1, 2), keepdims=True), w.shape)  # noqa: E731
    scores = tiling.sliding_scores(mean, images, 4, 2)
    np.testing.assert_allclose(scores[0, :, 0, 0], [1.5, 1.5, 2.5, 2.5, 3.5, 3.5])


@pytest.mark.parametrize(
    ("size", "seen"), [((1, 1), (8, 8)), ((4, 13), (8, 16)), ((9, 20), (12, 16)), ((16, 3), (16, 8))]
)
def test_short_axes_are_filled_up_to_two_patches_at_least(size, seen):
    """A network with patches of 4 pixels halves its features once more."""
    shapes = []

    def score(windows):
        shapes.append(windows.shape[1:3])
        return windows

    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, *size, 3)), jnp.float32)
    scores = tiling.sliding_scores(score, images, 16, 8, multiple=4)
    np.testing.assert_allclose(scores, images, atol=1e-6)
    assert set(shapes) == {seen}


def test_windows_reach_the_network_together():
    shapes = []

    def score(windows):
        shapes.append(windows.shape)
        return windows

    tiling.sliding_scores(score, jnp.zeros((2, 10, 10, 3)), 4, 3, batch=5)
    assert (10, 4, 4, 3) in shapes
