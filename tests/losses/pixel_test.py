"""The pixel-wise cross-entropy of scores compared with NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import LossConfig
from crossearth_jax.losses.pixel import FLOOR, pixel_loss, pixel_weights

CONFIG = LossConfig(points=16, pixel_weight=3.0)
PREDICTIONS, BATCH, QUERIES, CLASSES, SIZE = 3, 2, 7, 4, 8

loss = jax.jit(pixel_loss, static_argnums=0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    """Return class and mask logits. The masks have the size of the labels, so that no resizing is needed."""
    return (
        rng.normal(size=(PREDICTIONS, BATCH, QUERIES, CLASSES + 1)).astype(np.float32),
        rng.normal(size=(PREDICTIONS, BATCH, QUERIES, SIZE, SIZE)).astype(np.float32),
    )


@pytest.fixture
def labels(rng):
    found = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.uint8)
    found[:, :2] = 255
    return found


def test_the_term_is_the_mean_over_labelled_pixels_and_the_sum_over_predictions(logits, labels):
    classes, masks = (x.astype(np.float64) for x in logits)
    probability = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    scores = np.einsum("pbqk,pbqhw->pbhwk", probability[..., :-1], 1 / (1 + np.exp(-masks))) + FLOOR
    share = scores / scores.sum(-1, keepdims=True)
    expected = sum(
        -np.log(share[p, b, row, column, labels[b, row, column]])
        for p in range(PREDICTIONS)
        for b, row, column in np.argwhere(labels != 255)
    )
    expected *= CONFIG.pixel_weight / (labels != 255).sum()
    np.testing.assert_allclose(loss(CONFIG, *logits, labels)["pixel"], expected, rtol=2e-6)


def test_class_weights_make_a_weighted_mean():
    """Four pixels of the classes 0, 0, 1 and none: with equal scores the cross-entropy is log 2 everywhere."""
    labels = jnp.array([[[0, 0], [1, 255]]], np.uint8)
    config = LossConfig(points=16, pixel_weight=1.0, class_weights=(0.5, 3.0))
    np.testing.assert_allclose(pixel_weights(config, labels, 2), [[[0.5, 0.5], [3.0, 0.0]]])
    masks = np.full((1, 1, 1, 2, 2), 50.0, np.float32)  # one query with a mask of 1 everywhere
    even = loss(config, np.zeros((1, 1, 1, 3), np.float32), masks, labels)["pixel"]
    np.testing.assert_allclose(even, np.log(2), rtol=1e-5)
    # Class 0 has three times the probability of class 1: log 4/3 where the label is 0, log 4 where it is 1.
    logits = np.log(np.array([[[[0.6, 0.2, 0.2]]]], np.float32))
    expected = (2 * 0.5 * np.log(4 / 3) + 3 * np.log(4)) / 4
    np.testing.assert_allclose(loss(config, logits, masks, labels)["pixel"], expected, rtol=5e-3)  # FLOOR


def test_pixels_without_a_label_have_neither_value_nor_gradient(logits, labels):
    other = logits[1].copy()
    other[..., :2, :] += 5
    np.testing.assert_allclose(
        loss(CONFIG, *logits, labels)["pixel"], loss(CONFIG, logits[0], other, labels)["pixel"], rtol=1e-6
    )
    gradient = jax.grad(lambda masks: loss(CONFIG, logits[0], masks, labels)["pixel"])(jnp.asarray(logits[1]))
    assert not gradient[..., :2, :].any()
    assert gradient[..., 2:, :].all()


def test_a_batch_without_any_label_costs_nothing(logits):
    nothing = np.full((BATCH, SIZE, SIZE), 255, np.uint8)
    value, gradient = jax.value_and_grad(lambda masks: loss(CONFIG, logits[0], masks, nothing)["pixel"])(logits[1])
    assert value == 0
    assert not gradient.any()


def test_closed_masks_have_a_finite_loss_and_gradient(logits, labels):
    closed = np.full_like(logits[1], -200)
    value, gradient = jax.value_and_grad(lambda masks: loss(CONFIG, logits[0], masks, labels)["pixel"])(closed)
    # All scores are 0, so with the floor every class has the same probability.
    np.testing.assert_allclose(value, CONFIG.pixel_weight * PREDICTIONS * np.log(CLASSES), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_masks_are_enlarged_to_the_labels(logits, labels):
    small = logits[1][..., ::2, ::2]
    flat = np.broadcast_to(small[..., :1, :1], small.shape)
    large = np.broadcast_to(small[..., :1, :1], logits[1].shape)
    np.testing.assert_allclose(
        loss(CONFIG, logits[0], flat, labels)["pixel"], loss(CONFIG, logits[0], large, labels)["pixel"], rtol=1e-6
    )
