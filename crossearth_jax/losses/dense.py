"""Pixel-wise cross-entropy and Dice loss for a head that predicts class logits per pixel; not part of the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from crossearth_jax.config import LossConfig
from crossearth_jax.losses.pixel import pixel_weights
from crossearth_jax.ops.resize import resize_bilinear


def dense_loss(
    config: LossConfig, logits: Float[Array, "b h w k"], labels: UInt8[Array, "b H W"]
) -> dict[str, Float[Array, ""]]:
    """Compute the pixel-wise cross-entropy, and the Dice loss of each class that is present in an image.

    Args:
      config: `pixel_weight` and `class_weights` of the cross-entropy, and `dice_weight`.
      logits: of any size; they are resized bilinearly to the size of the labels.
      labels: 0 … K - 1; pixels with any other value are ignored.

    Returns:
      The weighted float32 terms `pixel` and `dice`. `pixel` is the mean over the labelled pixels of the global batch
      (see `pixel_loss` for class weights). `dice` is the mean of 1 - 2 sum(p y) / sum(p + y) over all pairs of an image
      of the global batch and a class present in it. Its sums are over the labelled pixels of the image, p is the class
      probability and y is 1 at pixels of the class, else 0.
    """
    classes = logits.shape[-1]
    weights = pixel_weights(config, labels, classes)
    log_shares = jax.nn.log_softmax(resize_bilinear(logits, labels.shape[1:3]))
    truth = jax.nn.one_hot(labels, classes)  # zeros where there is no label
    counted = weights.sum()
    cross_entropy = -(weights * (truth * log_shares).sum(-1)).sum() / jnp.where(counted > 0, counted, 1)
    shares = jnp.exp(log_shares) * (labels < classes)[..., None]
    overlap, total, area = (x.sum((1, 2)) for x in (shares * truth, shares + truth, truth))
    shown = area > 0
    dice = jnp.where(shown, 1 - 2 * overlap / jnp.where(shown, total, 1), 0).sum() / jnp.maximum(shown.sum(), 1)
    return {"pixel": config.pixel_weight * cross_entropy, "dice": config.dice_weight * dice}


def dense_normalisers(config: LossConfig, classes: int, labels: UInt8[Array, "b H W"]) -> dict[str, Float[Array, ""]]:
    """Return the divisors of `dense_loss`: the sum of the pixel weights, and the number of pairs of image and class."""
    shown = jax.nn.one_hot(labels, classes).any((1, 2))
    return {"pixel": pixel_weights(config, labels, classes).sum(), "dice": shown.sum().astype(jnp.float32)}
