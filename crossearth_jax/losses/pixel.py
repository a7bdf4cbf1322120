"""Pixel-wise cross-entropy of the scores that inference uses; not part of the reference.

The set loss trains the masks only of classes that are present in an image. That a class is absent is trained only
through the class logits of the queries, once per query and crop. For small crops this signal is too weak.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from crossearth_jax.config import LossConfig
from crossearth_jax.ops.scores import pixel_scores

FLOOR = 1e-3  # added to every score: bounds the gradient where all scores are near 0


def pixel_weights(config: LossConfig, labels: UInt8[Array, "b H W"], classes: int) -> Float[Array, "b H W"]:
    """Return the weight of each pixel in the mean: the weight of its class, or 0 for a pixel without a label."""
    assert not isinstance(config.class_weights, str), "must be computed from the labels before the loss is built"
    weights = jnp.ones(classes) if config.class_weights is None else jnp.asarray(config.class_weights)
    return jnp.where(labels < classes, weights[jnp.minimum(labels, classes - 1)], 0.0)


def pixel_loss(
    config: LossConfig,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Compute the mean cross-entropy over the labelled pixels of the global batch, summed over the predictions.

    The class probabilities of a pixel are its scores plus `FLOOR`, divided by their sum. With class weights w the mean
    is weighted: the sum over pixels of w[label] times the cross-entropy, divided by the sum of w[label].

    Args:
      config: `pixel_weight` and `class_weights`.
      class_logits: K + 1 per query, "no object" last.
      mask_logits: of any size, normally a quarter of the labels' size.
      labels: 0 … K - 1; pixels with any other value are ignored.

    Returns:
      The weighted float32 term `pixel`.
    """
    classes = class_logits.shape[-1] - 1
    weights = pixel_weights(config, labels, classes)
    wanted = jnp.minimum(labels, classes - 1)[..., None].astype(jnp.int32)

    def surprise(classes: Float[Array, "b q k1"], masks: Float[Array, "b q h w"]) -> Float[Array, ""]:
        scores = pixel_scores(classes, masks, labels.shape[1:3]) + FLOOR
        right = jnp.take_along_axis(scores, wanted, axis=-1)[..., 0]
        return (weights * (jnp.log(scores.sum(-1)) - jnp.log(right))).sum()

    # Masks of all queries at full size are large, so only those of one prediction are in memory at a time.
    total = sum(map(jax.checkpoint(surprise), class_logits, mask_logits), jnp.zeros(()))
    counted = weights.sum()
    return {"pixel": config.pixel_weight * total / jnp.where(counted > 0, counted, 1)}
