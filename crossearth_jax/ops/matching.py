"""Hungarian matching of queries to the classes of one image (Mask2Former with "semantic" targets).

An image has one target per class present in its label map: the binary mask of that class. The class axis `k` is
therefore also the target axis, of fixed length, with a flag for the classes that are present. All functions are
written for one image; `parallel.per_example` applies them to a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from crossearth_jax.config import LossConfig

# Replaces infinite costs: far above any real cost, but small enough for sums in float32.
COST_LIMIT = 1e4


class Match(NamedTuple):
    """The query matched to each class; for an unmatched class `matched` is False and `query` any valid index."""

    query: Int[Array, " k"]
    matched: Bool[Array, " k"]


def present_classes(labels: UInt8[Array, "h w"], classes: int) -> Bool[Array, " k"]:
    """Return which of the labels 0 … classes - 1 occur. Other labels belong to no class (255: ignored)."""
    return (labels[..., None] == jnp.arange(classes)).any((0, 1))


def matching_cost(
    config: LossConfig,
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "n q"],
    targets: Float[Array, "n k"],
) -> Float[Array, "q k"]:
    """Compute the cost of matching each query to each class: class probability, binary cross-entropy and Dice.

    Args:
      config: weights of the three costs; they are also the weights of the losses.
      class_logits: K + 1 per query, "no object" last.
      mask_logits: each query's mask logits at n points.
      targets: each class's mask at the same points, in [0, 1].

    Returns:
      Cost of each pair, float32.
    """
    mask_logits = mask_logits.astype(jnp.float32)
    probability = jax.nn.softmax(class_logits.astype(jnp.float32))[:, :-1]
    mask = jax.nn.sigmoid(mask_logits)
    # These products decide between queries, so the accelerator must not round their inputs to bfloat16.
    overlap = jnp.einsum("nq,nk->qk", mask, targets, precision="highest")
    agreement = jnp.einsum("nq,nk->qk", mask_logits, targets, precision="highest")
    cross_entropy = (jax.nn.softplus(mask_logits).sum(0)[:, None] - agreement) / len(targets)
    dice = 1 - (2 * overlap + 1) / (mask.sum(0)[:, None] + targets.sum(0) + 1)
    return -config.class_weight * probability + config.mask_weight * cross_entropy + config.dice_weight * dice


def match(cost: Float[Array, "q k"], present: Bool[Array, " k"]) -> Match:
    """Match queries to present classes one to one, as many as possible, at minimum total cost.

    Args:
      cost: cost of each pair, clipped to ±`COST_LIMIT`; NaN counts as `COST_LIMIT`.
      present: the classes to match. If there are more of them than queries, some stay unmatched.

    Returns:
      The match of each class. There is no gradient.
    """
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost), nan=COST_LIMIT).clip(-COST_LIMIT, COST_LIMIT)
    # All pairs with an absent class have the same cost, so absent classes do not influence the other matches. This cost
    # is higher than any other, so they take no query from a present class if there are too few queries.
    cost = jnp.where(present, cost, cost.max(where=present, initial=0) + 1)
    queries, classes = optax.assignment.hungarian_algorithm(cost)
    nobody = jnp.zeros(cost.shape[1], int)
    return Match(nobody.at[classes].set(queries), nobody.at[classes].set(1).astype(bool) & present)
