"""Cross-entropy and Dice loss of a per-pixel head compared with NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import LossConfig
from crossearth_jax.losses.dense import dense_loss
from crossearth_jax.losses.segmentation import segmentation_loss, segmentation_normalisers

CONFIG = LossConfig(pixel_weight=3.0, dice_weight=2.0)
BATCH, CLASSES, SIZE = 4, 4, 8

loss = jax.jit(dense_loss, static_argnums=0)
normalisers = jax.jit(segmentation_normalisers, static_argnums=(0, 1, 2))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, CLASSES)).astype(np.float32)


@pytest.fixture
def labels():
    """Return labels: class 3 only in the first image, no label in the second, and unlabelled rows in the others."""
    found = np.random.default_rng(1).integers(0, 3, (BATCH, SIZE, SIZE)).astype(np.uint8)
    found[0, 5:] = 3
    found[1] = 255
    found[2, :3] = 255
    return found


def expected(logits, labels, weights):
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    places = [tuple(place) for place in np.argwhere(labels != 255)]
    surprise = sum(-weights[labels[place]] * np.log(shares[place][labels[place]]) for place in places)
    dice = []
    for image, truth in zip(shares, labels, strict=True):
        for k in set(truth[truth != 255].tolist()):
            p, y = image[truth != 255][:, k], truth[truth != 255] == k
            dice.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()))
    return surprise / sum(weights[labels[place]] for place in places), np.mean(dice)


@pytest.mark.parametrize("weights", [None, (0.5, 3.0, 1.0, 2.0)])
def test_terms_equal_numpy(logits, labels, weights):
    found = loss(dataclasses.replace(CONFIG, class_weights=weights), logits, labels)
    cross_entropy, dice = expected(logits, labels, weights or (1, 1, 1, 1))
    np.testing.assert_allclose(found["pixel"], 3.0 * cross_entropy, rtol=1e-6)
    np.testing.assert_allclose(found["dice"], 2.0 * dice, rtol=1e-6)


def test_coarse_logits_are_enlarged(labels):
    coarse = np.zeros((BATCH, 2, 2, CLASSES), np.float32)
    coarse[..., 1] = 2.0  # constant, so that every interpolation gives the same values
    whole = np.broadcast_to(coarse[:, :1, :1], (BATCH, SIZE, SIZE, CLASSES))
    for name, value in loss(CONFIG, coarse, labels).items():
        np.testing.assert_allclose(value, loss(CONFIG, whole, labels)[name], rtol=1e-6)


def test_parts_of_a_batch_weighted_by_their_shares_are_the_batch(logits, labels):
    whole = segmentation_loss(CONFIG, jax.random.key(0), jnp.asarray(logits), jnp.asarray(labels))
    sums = [normalisers(CONFIG, CLASSES, None, labels[part]) for part in (slice(0, 2), slice(2, 4))]
    for name, value in whole.items():
        shares = np.array([float(each[name]) for each in sums])
        parts = [float(loss(CONFIG, logits[part], labels[part])[name]) for part in (slice(0, 2), slice(2, 4))]
        np.testing.assert_allclose(np.dot(shares / shares.sum(), parts), value, rtol=1e-6)


def test_a_batch_without_any_label_has_neither_value_nor_gradient(logits):
    nothing = jnp.full((BATCH, SIZE, SIZE), 255, jnp.uint8)
    value, gradient = jax.value_and_grad(lambda x: sum(dense_loss(CONFIG, x, nothing).values()))(jnp.asarray(logits))
    assert value == 0 and not gradient.any()
