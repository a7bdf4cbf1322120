"""Matching queries to the classes of one image by minimum cost (Mask2Former with "semantic" targets).

An image has one target per class present in its label map: the binary mask of that class. The class axis `k` is
therefore also the target axis, of fixed length, with a flag for the classes that are present. Everything is
written for one example; `parallel.per_example` lifts it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from crossearth_jax.config import LossConfig

# Finite stand-in for an infinite cost, far above any real one but small enough to add up in float32.
COST_LIMIT = 1e4


class Match(NamedTuple):
    """The query matched to each class; a class without one has `matched` False and some valid query."""

    query: Int[Array, " k"]
    matched: Bool[Array, " k"]


def present_classes(labels: UInt8[Array, "h w"], classes: int) -> Bool[Array, " k"]:
    """Tells which of the labels 0 … classes - 1 occur; other labels (255: ignored) are nobody's."""
    return (labels[..., None] == jnp.arange(classes)).any((0, 1))


def matching_cost(
    config: LossConfig,
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "n q"],
    targets: Float[Array, "n k"],
) -> Float[Array, "q k"]:
    """Computes what it costs to match a query to a class: class probability, binary cross-entropy and Dice.

    Args:
      config: the weights of the three costs, which are those of the losses.
      class_logits: K + 1 per query, "no object" last.
      mask_logits: each query's mask logits at n points.
      targets: each class's mask at the same points, in [0, 1].

    Returns:
      Cost of each pair, float32.
    """
    mask_logits = mask_logits.astype(jnp.float32)
    probability = jax.nn.softmax(class_logits.astype(jnp.float32))[:, :-1]
    mask = jax.nn.sigmoid(mask_logits)
    # Products over the points decide between queries: keep the accelerator from rounding them to bfloat16.
    overlap = jnp.einsum("nq,nk->qk", mask, targets, precision="highest")
    agreement = jnp.einsum("nq,nk->qk", mask_logits, targets, precision="highest")
    cross_entropy = (jax.nn.softplus(mask_logits).sum(0)[:, None] - agreement) / len(targets)
    dice = 1 - (2 * overlap + 1) / (mask.sum(0)[:, None] + targets.sum(0) + 1)
    return -config.class_weight * probability + config.mask_weight * cross_entropy + config.dice_weight * dice


def match(cost: Float[Array, "q k"], present: Bool[Array, " k"]) -> Match:
    """Matches queries to present classes one to one, as many as possible, at the least total cost.

    Args:
      cost: cost of each pair; NaN and infinities count as very expensive.
      present: the classes to match. There may be more of them than queries: the rest stays unmatched.

    Returns:
      The match of each class. There is no gradient.
    """
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost), nan=COST_LIMIT).clip(-COST_LIMIT, COST_LIMIT)
    # Absent classes cost all the same, so they do not influence who gets which class, and more than any present
    # one, so they never take a query from it where queries are short.
    cost = jnp.where(present, cost, cost.max(where=present, initial=0) + 1)
    queries, classes = optax.assignment.hungarian_algorithm(cost)
    nobody = jnp.zeros(cost.shape[1], int)
    return Match(nobody.at[classes].set(queries), nobody.at[classes].set(1).astype(bool) & present)
