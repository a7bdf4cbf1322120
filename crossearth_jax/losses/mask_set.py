"""The Mask2Former set loss: class, mask and Dice terms of every prediction after optimal matching.

Masks are compared at random points, never densely. For the matching all masks share uniform points; for the loss
each matched mask has its own, most of them where its logit is nearest to 0. Pixels without a label are background.
All sums are normalised over the global batch, so the loss does not depend on how it is split over devices.
Class weights act on the class term alone: the cross-entropy of a query that is matched to class k counts w[k] times, of
one that is matched to nothing `no_object_weight` times, and the sum is divided by the sum of these weights. Mask and
Dice terms compare masks, for which rare classes weigh as much as frequent ones already.
Source: Mask2Former (arXiv 2112.01527) section 3.3 with the numbers of CrossEarth's configuration.
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
    """The random draws for one prediction of one image: points (x, y), uniform in [0, 1)."""

    matching: Float[Array, "*b n 2"]  # shared by all masks
    loss: Float[Array, "*b k m 2"]  # of each class's mask; the candidates for uncertain points come first


class Sums(NamedTuple):
    """What one prediction of one image adds to the loss, not yet weighted or normalised."""

    cross_entropy: Float[Array, "*b"]  # weighted by class
    class_weight: Float[Array, "*b"]
    mask: Float[Array, "*b"]  # binary cross-entropy over masks and points
    dice: Float[Array, "*b"]
    masks: Float[Array, "*b"]  # matched masks, at least 1


def mask_set_loss(
    config: LossConfig,
    key: PRNGKeyArray,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Computes the set loss of all predictions.

    Args:
      config: numbers of points and weights.
      key: of the random points.
      class_logits: K + 1 per query, "no object" last; the last prediction is the final one.
      mask_logits: at any size, normally a quarter of the labels'.
      labels: 0 … K - 1; anything else is background to the masks and is not searched for.

    Returns:
      Weighted float32 terms `class/last`, `mask/last`, `dice/last`, and `class/0`, … of the earlier predictions.
      The loss is their plain sum.
    """
    predictions, batch, _, classes = class_logits.shape

    def image_sums(key: PRNGKeyArray, *image: Array) -> Sums:
        draw = functools.partial(draw_points, config, classes=classes - 1)
        return _image_sums(config, jax.vmap(draw)(jax.random.split(key, predictions)), *image)

    logits = _batch_first(class_logits, mask_logits)
    return _terms(config, parallel.per_example(image_sums)(jax.random.split(key, batch), *logits, labels))


def loss_from_points(
    config: LossConfig,
    points: Points,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Computes `mask_set_loss` at given points, whose leading axes are (b, p)."""
    image_sums = parallel.per_example(functools.partial(_image_sums, config))
    return _terms(config, image_sums(points, *_batch_first(class_logits, mask_logits), labels))


def _batch_first(class_logits: Array, mask_logits: Array) -> tuple[Array, Array]:
    return einops.rearrange(class_logits, "p b ... -> b p ..."), einops.rearrange(mask_logits, "p b ... -> b p ...")


def draw_points(config: LossConfig, key: PRNGKeyArray, classes: int) -> Points:
    """Draws the points for one prediction of one image."""
    own = _candidates(config) + config.points - _uncertain(config)
    # One draw for all: the generator is a large program, compiled once per draw.
    numbers = jax.random.uniform(key, (config.points + classes * own, 2))
    rest = einops.rearrange(numbers[config.points :], "(k m) xy -> k m xy", k=classes)
    return Points(numbers[: config.points], rest)


def _candidates(config: LossConfig) -> int:
    return int(config.oversample * config.points)


def _uncertain(config: LossConfig) -> int:
    return int(config.importance * config.points)


def _image_sums(config: LossConfig, points: Points, class_logits: Array, mask_logits: Array, labels: Array) -> Sums:
    """Sums of all predictions of one image. Predictions take turns, which bounds the memory."""
    packed = sampling.pack_labels(labels)
    present = matching.present_classes(labels, class_logits.shape[-1] - 1)

    def cost(prediction: tuple[Array, Array, Array]) -> Array:
        return prediction_cost(config, *prediction, packed)

    def sums(prediction: tuple[Array, Match, Array, Array]) -> Sums:
        return _prediction_sums(config, *prediction, packed)

    costs = jax.lax.map(cost, jax.lax.stop_gradient((points.matching, class_logits, mask_logits)))
    # Matched together: the Hungarian algorithm is a chain of small steps that batching makes no longer.
    matches = jax.vmap(matching.match, in_axes=(0, None))(costs, present)
    return jax.lax.map(sums, (points.loss, matches, class_logits, mask_logits))


def prediction_cost(
    config: LossConfig,
    points: Float[Array, "n 2"],
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    packed: UInt32[Array, "H1 W1"],
) -> Float[Array, "q k"]:
    """Computes the matching cost of one prediction of one image, for every class.

    Args:
      config: weights of the costs.
      points: where the masks are compared.
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
    """Decides which of each mask's points count, given its logits there; there is no gradient.

    Of the candidates, which come first, those with the logits nearest to 0; all of the others. Weights rather than
    a selection: gathering the chosen points costs more than carrying the rest along.

    Returns:
      0 or 1, except for ties; each mask's weights add up to `config.points`.
    """
    candidates = _candidates(config)
    chosen = smallest(jnp.abs(logits[:, :candidates]), _uncertain(config))
    return jnp.concatenate([chosen, jnp.ones_like(logits[:, candidates:])], axis=1)


def _class_sums(
    config: LossConfig, match: Match, class_logits: Float[Array, "q k1"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted cross-entropy of all queries, and the sum of the weights; an unmatched query is "no object"."""
    queries, no_object = class_logits.shape[0], class_logits.shape[1] - 1
    log_probability = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    taken = (match.query == jnp.arange(queries)[:, None]) & match.matched
    target = jnp.where(taken.any(1), taken.argmax(1), no_object)
    weight = _class_weights(config, no_object)[target]
    chosen = jnp.take_along_axis(log_probability, target[:, None], axis=1)[:, 0]
    return -(weight * chosen).sum(), weight.sum()


def _class_weights(config: LossConfig, classes: int) -> Float[Array, " k1"]:
    """Weight of each class in the class term, "no object" last."""
    assert not isinstance(config.class_weights, str), "training counts them before it builds the loss"
    weights = jnp.ones(classes) if config.class_weights is None else jnp.asarray(config.class_weights)
    return jnp.append(weights, config.no_object_weight)


def mask_set_normalisers(
    config: LossConfig, queries: int, classes: int, labels: UInt8[Array, "b H W"]
) -> dict[str, Float[Array, ""]]:
    """What the class terms and the mask and Dice terms of a batch are divided by; it follows from the labels alone.

    Every class of an image is matched as long as there are queries, whatever is predicted. With fewer queries than
    classes in an image, the mean of the classes' weights stands for those that are matched.
    """
    present = parallel.per_example(functools.partial(matching.present_classes, classes=classes))(labels)
    matched = jnp.minimum(present.sum(1), queries).astype(jnp.float32)
    weights = present @ _class_weights(config, classes)[:classes] * matched / jnp.maximum(present.sum(1), 1)
    return {
        "class": (weights + config.no_object_weight * (queries - matched)).sum(),
        "mask": jnp.maximum(matched, 1).sum(),
    }


def _terms(config: LossConfig, sums: Sums) -> dict[str, Float[Array, ""]]:
    """Normalises over the batch (the leading axis of `sums`; the second is the predictions) and names the terms."""
    total = jax.tree.map(lambda values: values.sum(0), sums)
    values = {
        "class": config.class_weight * total.cross_entropy / (total.class_weight + EPSILON),
        "mask": config.mask_weight * total.mask / (total.masks * config.points + EPSILON),
        "dice": config.dice_weight * total.dice / (total.masks + EPSILON),
    }
    names = ["last", *map(str, range(len(total.masks) - 1))]
    return {f"{term}/{name}": value[i - 1] for i, name in enumerate(names) for term, value in values.items()}
