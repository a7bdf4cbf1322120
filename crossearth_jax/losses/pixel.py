"""Cross-entropy of the scores that prediction uses: what the set loss leaves unsaid, not part of the reference.

The set loss holds a mask to its class only in images that show the class, and leaves it to a query's class logits to
say that they do not. In crops of a few pixels that decides nearly everything, and only once per crop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from crossearth_jax.config import LossConfig
from crossearth_jax.ops.scores import pixel_scores

FLOOR = 1e-3  # added to every score: bounds the gradient where no mask is open


def labelled_pixels(labels: UInt8[Array, "b H W"], classes: int) -> Bool[Array, "b H W"]:
    """Pixels that the loss is a mean over."""
    return labels < classes


def pixel_loss(
    config: LossConfig,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Computes the mean over the labelled pixels of the global batch, summed over the predictions.

    Args:
      config: `pixel_weight`.
      class_logits: K + 1 per query, "no object" last.
      mask_logits: at any size, normally a quarter of the labels'.
      labels: 0 … K - 1; pixels of any other value do not count.

    Returns:
      The weighted float32 term `pixel`.
    """
    labelled = labelled_pixels(labels, class_logits.shape[-1] - 1)
    wanted = jnp.where(labelled, labels, 0)[..., None].astype(jnp.int32)

    def surprise(classes: Float[Array, "b q k1"], masks: Float[Array, "b q h w"]) -> Float[Array, ""]:
        scores = pixel_scores(classes, masks, labels.shape[1:3]) + FLOOR
        right = jnp.take_along_axis(scores, wanted, axis=-1)[..., 0]
        return (jnp.log(scores.sum(-1)) - jnp.log(right)).sum(where=labelled)

    # Scores of all queries at full size are large: those of one prediction at a time are kept.
    total = sum(map(jax.checkpoint(surprise), class_logits, mask_logits), jnp.zeros(()))
    return {"pixel": config.pixel_weight * total / jnp.maximum(labelled.sum(), 1)}
