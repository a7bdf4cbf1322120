"""The Mask2Former set loss: class, mask and Dice terms of every prediction after Hungarian matching.

Masks are compared at random points, never at all pixels. The matching uses the same uniform points for all masks. In
the loss every matched mask has its own points, most of them where its logit is nearest to 0. Pixels without a label
count as background. All sums are normalised over the global batch, so the loss does not depend on how the batch is
sharded.

Class weights apply to the class term only. The cross-entropy of a query has the weight w[k] if the query is matched to
class k, and `no_object_weight` if it is unmatched; the sum is divided by the sum of these weights. The mask and Dice
terms need no class weights, since every mask counts equally there, whatever the size of its class.

Source: Mask2Former (arXiv 2112.01527), section 3.3, with the numbers of CrossEarth's configuration.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8, UInt32

from crossearth_jax.config import LossConfig
from crossearth_jax.ops import matching, sampling
from crossearth_jax.ops.matching import Match
from crossearth_jax.ops.selection import smallest
from crossearth_jax.runtime import parallel

EPSILON = float(jnp.finfo(jnp.float32).eps)


class Points(NamedTuple):
    """The random points (x, y) for one prediction of one image, uniform in [0, 1)."""

    matching: Float[Array, "*b n 2"]  # the same for all masks
    loss: Float[Array, "*b k m 2"]  # per class; first the candidates for uncertain points, then the other points


class Sums(NamedTuple):
    """Sums over one prediction of one image, before the weights of the terms and the normalisation."""

    cross_entropy: Float[Array, "*b"]  # over the queries, with class weights
    class_weight: Float[Array, "*b"]  # sum of these class weights
    mask: Float[Array, "*b"]  # binary cross-entropy over matched masks and points
    dice: Float[Array, "*b"]  # Dice loss over matched masks
    masks: Float[Array, "*b"]  # number of matched masks, at least 1


def mask_set_loss(
    config: LossConfig,
    key: PRNGKeyArray,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Compute the set loss of all predictions.

    Args:
      config: numbers of points and weights of the terms.
      key: key of the random points.
      class_logits: K + 1 per query, "no object" last; the last prediction is the final one.
      mask_logits: of any size, normally a quarter of the labels' size.
      labels: 0 … K - 1; pixels with any other value are background in all masks and give no target.

    Returns:
      Weighted float32 terms `class/last`, `mask/last`, `dice/last`, and `class/0`, … of the earlier predictions.
      The loss is their sum.
    """
    predictions, batch, _, classes = class_logits.shape

    def draw(key: PRNGKeyArray) -> Points:
        draw_one = functools.partial(draw_points, config, classes=classes - 1)
        return jax.vmap(draw_one)(jax.random.split(key, predictions))

    points = parallel.per_example(draw)(jax.random.split(key, batch))
    return loss_from_points(config, points, class_logits, mask_logits, labels)


def loss_from_points(
    config: LossConfig,
    points: Points,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Compute `mask_set_loss` at given points, whose leading axes are (b, p)."""
    image_sums = parallel.per_example(functools.partial(_image_sums, config))
    logits = (einops.rearrange(x, "p b ... -> b p ...") for x in (class_logits, mask_logits))
    return _terms(config, image_sums(points, *logits, labels))


def draw_points(config: LossConfig, key: PRNGKeyArray, classes: int) -> Points:
    """Draw the points for one prediction of one image."""
    own = _candidates(config) + config.points - _uncertain(config)
    # One draw for all points, since XLA compiles a random generator for every draw.
    numbers = jax.random.uniform(key, (config.points + classes * own, 2))
    rest = einops.rearrange(numbers[config.points :], "(k m) xy -> k m xy", k=classes)
    return Points(numbers[: config.points], rest)


def _candidates(config: LossConfig) -> int:
    return int(config.oversample * config.points)


def _uncertain(config: LossConfig) -> int:
    return int(config.importance * config.points)


def _image_sums(config: LossConfig, points: Points, class_logits: Array, mask_logits: Array, labels: Array) -> Sums:
    """Compute the sums of all predictions of one image, one after another to limit the memory."""
    packed = sampling.pack_labels(labels)
    present = matching.present_classes(labels, class_logits.shape[-1] - 1)

    def cost(prediction: tuple[Array, Array, Array]) -> Array:
        return prediction_cost(config, *prediction, packed)

    def sums(prediction: tuple[Array, Match, Array, Array]) -> Sums:
        return _prediction_sums(config, *prediction, packed)

    costs = jax.lax.map(cost, jax.lax.stop_gradient((points.matching, class_logits, mask_logits)))
    # Matched as a batch: the Hungarian algorithm is a sequence of small steps, and a batch needs hardly more of them.
    matches = jax.vmap(matching.match, in_axes=(0, None))(costs, present)
    return jax.lax.map(sums, (points.loss, matches, class_logits, mask_logits))


def prediction_cost(
    config: LossConfig,
    points: Float[Array, "n 2"],
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    packed: UInt32[Array, "H1 W1"],
) -> Float[Array, "q k"]:
    """Compute the matching cost of every query and class, for one prediction of one image.

    Args:
      config: weights of the costs.
      points: (x, y) in [0, 1), where the masks are compared.
      class_logits: K + 1 per query.
      mask_logits: one mask per query.
      packed: `sampling.pack_labels` of the label map.
    """
    sampled = sampling.sample_channels(einops.rearrange(mask_logits, "q h w -> h w q"), points)
    sample = jax.vmap(sampling.sample_label, in_axes=(None, None, 0), out_axes=1)
    targets = sample(packed, points, jnp.arange(class_logits.shape[-1] - 1))
    return matching.matching_cost(config, class_logits, sampled, targets)


def _prediction_sums(
    config: LossConfig, points: Array, match: Match, class_logits: Array, mask_logits: Array, packed: Array
) -> Sums:
    logits = jax.vmap(sampling.sample_points)(mask_logits[match.query], points)
    targets = jax.vmap(sampling.sample_label, in_axes=(None, 0, 0))(packed, points, jnp.arange(len(points)))
    weights = point_weights(config, logits)
    mask = weights * jax.nn.sigmoid(logits)
    dice = 1 - (2 * (mask * targets).sum(1) + 1) / (mask.sum(1) + (weights * targets).sum(1) + 1)
    cross_entropy, class_weight = _class_sums(config, match, class_logits)
    return Sums(
        cross_entropy=cross_entropy,
        class_weight=class_weight,
        mask=(weights * (jax.nn.softplus(logits) - logits * targets)).sum(1).sum(where=match.matched),
        dice=dice.sum(where=match.matched),
        masks=jnp.maximum(match.matched.sum(), 1).astype(jnp.float32),
    )


def point_weights(config: LossConfig, logits: Float[Array, "k m"]) -> Float[Array, "k m"]:
    """Compute the weight of each point in the mask and Dice terms from the mask logits there, without gradient.

    The candidates come first; those with logits nearest to 0 have weight 1. All points after the candidates have weight
    1. Weights are used because gathering the selected points takes longer than computing with all of them.

    Returns:
      0 or 1, or fractions in case of ties. The weights of a mask add up to `config.points`.
    """
    candidates = _candidates(config)
    chosen = smallest(jnp.abs(logits[:, :candidates]), _uncertain(config))
    return jnp.concatenate([chosen, jnp.ones_like(logits[:, candidates:])], axis=1)


def _class_sums(
    config: LossConfig, match: Match, class_logits: Float[Array, "q k1"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the weighted cross-entropy of all queries and the sum of weights; unmatched queries are "no object"."""
    queries, no_object = class_logits.shape[0], class_logits.shape[1] - 1
    log_probability = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    taken = (match.query == jnp.arange(queries)[:, None]) & match.matched
    target = jnp.where(taken.any(1), taken.argmax(1), no_object)
    weight = _class_weights(config, no_object)[target]
    chosen = jnp.take_along_axis(log_probability, target[:, None], axis=1)[:, 0]
    return -(weight * chosen).sum(), weight.sum()


def _class_weights(config: LossConfig, classes: int) -> Float[Array, " k1"]:
    """Return the weight of each class in the class term, "no object" last."""
    assert not isinstance(config.class_weights, str), "must be computed from the labels before the loss is built"
    weights = jnp.ones(classes) if config.class_weights is None else jnp.asarray(config.class_weights)
    return jnp.append(weights, config.no_object_weight)


def mask_set_normalisers(
    config: LossConfig, queries: int, classes: int, labels: UInt8[Array, "b H W"]
) -> dict[str, Float[Array, ""]]:
    """Return the divisors of the class terms and of the mask and Dice terms of a batch, from the labels alone.

    Constant factors, such as the number of points, are left out. Every class of an image is matched as long as there
    are enough queries, whatever the predictions are. If an image has more classes than queries, the mean weight of its
    classes is used for each matched class.
    """
    present = parallel.per_example(functools.partial(matching.present_classes, classes=classes))(labels)
    matched = jnp.minimum(present.sum(1), queries).astype(jnp.float32)
    weights = present @ _class_weights(config, classes)[:classes] * matched / jnp.maximum(present.sum(1), 1)
    return {
        "class": (weights + config.no_object_weight * (queries - matched)).sum(),
        "mask": jnp.maximum(matched, 1).sum(),
    }


def _terms(config: LossConfig, sums: Sums) -> dict[str, Float[Array, ""]]:
    """Sum over the batch (first axis of `sums`), normalise, and name the terms of each prediction (second axis)."""
    total = jax.tree.map(lambda values: values.sum(0), sums)
    values = {
        "class": config.class_weight * total.cross_entropy / (total.class_weight + EPSILON),
        "mask": config.mask_weight * total.mask / (total.masks * config.points + EPSILON),
        "dice": config.dice_weight * total.dice / (total.masks + EPSILON),
    }
    names = ["last", *map(str, range(len(total.masks) - 1))]
    return {f"{term}/{name}": value[i - 1] for i, name in enumerate(names) for term, value in values.items()}
