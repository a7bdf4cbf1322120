"""The segmentation loss, for the predictions of any head."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from crossearth_jax.config import LossConfig
from crossearth_jax.losses.dense import dense_loss, dense_normalisers
from crossearth_jax.losses.mask_set import mask_set_loss, mask_set_normalisers
from crossearth_jax.losses.pixel import pixel_loss, pixel_weights


def segmentation_loss(
    config: LossConfig,
    key: PRNGKeyArray,
    predictions: jax.Array | tuple[jax.Array, jax.Array],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Compute the weighted float32 terms of the loss. The loss is their sum.

    Args:
      config: weights of the terms, and numbers of points.
      key: key of the random points of the set loss.
      predictions: of `SegmentationModel.decode`: class and mask logits of queries, or class logits per pixel.
      labels: 0 … K - 1, or IGNORE.
    """
    if not isinstance(predictions, tuple):
        return dense_loss(config, predictions, labels)
    terms = mask_set_loss(config, key, *predictions, labels)
    return terms | pixel_loss(config, *predictions, labels) if config.pixel_weight else terms


def segmentation_normalisers(
    config: LossConfig, classes: int, queries: int | None, labels: UInt8[Array, "b H W"]
) -> dict[str, Float[Array, ""]]:
    """Return the divisor of each kind of loss term (the first part of its name), up to constant factors.

    Args:
      config: weights of the terms.
      classes: number of classes.
      queries: number of queries of the head; None if it classifies pixels.
      labels: 0 … K - 1, or IGNORE.
    """
    if queries is None:
        return dense_normalisers(config, classes, labels)
    sums = mask_set_normalisers(config, queries, classes, labels)
    pixels = pixel_weights(config, labels, classes).sum()
    return {"class": sums["class"], "mask": sums["mask"], "dice": sums["mask"], "pixel": pixels}
