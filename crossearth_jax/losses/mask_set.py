"""The Mask2Former set loss: class, mask and Dice terms of every prediction after optimal matching.

Masks are compared at random points, never densely. For the matching all masks share uniform points; for the loss
each matched mask has its own, most of them chosen where its logit is nearest to 0. Pixels without a label are
background. All sums are normalised over the global batch, so the loss does not depend on how it is split over
devices. Source: Mask2Former (arXiv 2112.01527) section 3.3 with the numbers of CrossEarth's configuration.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from crossearth_jax import parallel
from crossearth_jax.config import LossConfig
from crossearth_jax.ops import matching, sampling

EPSILON = float(jnp.finfo(jnp.float32).eps)


class Points(NamedTuple):
    """The random draws for one prediction of one image: points (x, y), uniform in [0, 1)."""

    match: Float[Array, "*b n 2"]  # shared by all masks of the matching
    candidates: Float[Array, "*b k m 2"]  # of which the most uncertain are kept for the loss
    uniform: Float[Array, "*b k u 2"]  # kept as they are


class Sums(NamedTuple):
    """What one prediction of one image adds to the loss, not yet weighted or normalised."""

    cross_entropy: Float[Array, "*b"]  # weighted by class
    class_weight: Float[Array, "*b"]
    mask: Float[Array, "*b"]  # binary cross-entropy over masks and points
    dice: Float[Array, "*b"]
    masks: Float[Array, "*b"]  # matched masks, at least 1


def draw_points(config: LossConfig, key: Key[Array, ""], classes: int) -> Points:
    """Draws the points for one prediction of one image."""
    match, candidates, uniform = jax.random.split(key, 3)
    uncertain = int(config.importance * config.points)
    return Points(
        match=jax.random.uniform(match, (config.points, 2)),
        candidates=jax.random.uniform(candidates, (classes, int(config.oversample * config.points), 2)),
        uniform=jax.random.uniform(uniform, (classes, config.points - uncertain, 2)),
    )


def mask_set_loss(
    config: LossConfig,
    key: Key[Array, ""],
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

    def image_sums(key: Key[Array, ""], *image: Array) -> Sums:
        draw = functools.partial(draw_points, config, classes=classes - 1)
        return _image_sums(config, jax.vmap(draw)(jax.random.split(key, predictions)), *image)

    sums = parallel.per_example(image_sums)(
        jax.random.split(key, batch), *_batch_first(class_logits, mask_logits), labels
    )
    return _terms(config, sums)


def loss_from_points(
    config: LossConfig,
    points: Points,
    class_logits: Float[Array, "p b q k1"],
    mask_logits: Float[Array, "p b q h w"],
    labels: UInt8[Array, "b H W"],
) -> dict[str, Float[Array, ""]]:
    """Computes `mask_set_loss` with given points, whose leading axes are (b, p)."""
    image_sums = functools.partial(_image_sums, config)
    sums = parallel.per_example(image_sums)(points, *_batch_first(class_logits, mask_logits), labels)
    return _terms(config, sums)


def _batch_first(class_logits: Array, mask_logits: Array) -> tuple[Array, Array]:
    return einops.rearrange(class_logits, "p b ... -> b p ..."), einops.rearrange(mask_logits, "p b ... -> b p ...")


def _image_sums(config: LossConfig, points: Points, class_logits: Array, mask_logits: Array, labels: Array) -> Sums:
    """Sums of all predictions of one image. Predictions take turns, which bounds the memory."""
    present = matching.present_classes(labels, class_logits.shape[-1] - 1)

    def cost(prediction: tuple[Array, Array, Array]) -> Array:
        return prediction_cost(config, *prediction, labels)

    costs = jax.lax.map(cost, jax.lax.stop_gradient((points.match, class_logits, mask_logits)))
    # Matched together: the Hungarian algorithm is a chain of small steps that batching makes no longer.
    matches = jax.vmap(matching.match, in_axes=(0, None))(costs, present)

    def sums(prediction: tuple[Points, matching.Match, Array, Array]) -> Sums:
        return _prediction_sums(config, *prediction, labels)

    return jax.lax.map(sums, (points, matches, class_logits, mask_logits))


def prediction_cost(
    config: LossConfig,
    points: Float[Array, "n 2"],
    class_logits: Float[Array, "q k1"],
    mask_logits: Float[Array, "q h w"],
    labels: UInt8[Array, "H W"],
) -> Float[Array, "q k"]:
    """Computes the matching cost of one prediction of one image at the given points, for every class."""
    sampled = sampling.sample_points(einops.rearrange(mask_logits, "q h w -> h w q"), points)
    sample = jax.vmap(sampling.sample_label, in_axes=(None, None, 0), out_axes=1)
    targets = sample(labels, points, jnp.arange(class_logits.shape[-1] - 1))
    return matching.matching_cost(config, class_logits, sampled, targets)


def uncertain_points(
    logits: Float[Array, "k h w"], candidates: Float[Array, "k m 2"], count: int
) -> Float[Array, "k c 2"]:
    """Keeps, for each mask, the `count` candidates where its logit is nearest to 0. There is no gradient."""
    uncertainty = -jnp.abs(jax.vmap(sampling.sample_points)(jax.lax.stop_gradient(logits), candidates))
    _, chosen = jax.lax.top_k(uncertainty, count)
    return jnp.take_along_axis(candidates, chosen[..., None], axis=1)


def _prediction_sums(
    config: LossConfig,
    points: Points,
    match: matching.Match,
    class_logits: Array,
    mask_logits: Array,
    labels: Array,
) -> Sums:
    logits = mask_logits[match.query]
    chosen = uncertain_points(logits, points.candidates, config.points - points.uniform.shape[-2])
    chosen = jnp.concatenate([chosen, points.uniform], axis=1)
    sampled = jax.vmap(sampling.sample_points)(logits, chosen)
    targets = jax.vmap(sampling.sample_label, in_axes=(None, 0, 0))(labels, chosen, jnp.arange(len(chosen)))
    cross_entropy, class_weight = _class_sums(config, match, class_logits)
    return Sums(
        cross_entropy=cross_entropy,
        class_weight=class_weight,
        mask=(jax.nn.softplus(sampled) - sampled * targets).sum(1).sum(where=match.matched),
        dice=_dice(sampled, targets).sum(where=match.matched),
        masks=jnp.maximum(match.matched.sum(), 1).astype(jnp.float32),
    )


def _dice(logits: Float[Array, "k n"], targets: Float[Array, "k n"]) -> Float[Array, " k"]:
    mask = jax.nn.sigmoid(logits)
    return 1 - (2 * (mask * targets).sum(1) + 1) / (mask.sum(1) + targets.sum(1) + 1)


def _class_sums(
    config: LossConfig, match: matching.Match, class_logits: Float[Array, "q k1"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    queries, no_object = class_logits.shape[0], class_logits.shape[1] - 1
    log_probability = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    taken = (match.query == jnp.arange(queries)[:, None]) & match.matched
    target = jnp.where(taken.any(1), taken.argmax(1), no_object)
    weight = jnp.where(target == no_object, config.no_object_weight, 1.0)
    chosen = jnp.take_along_axis(log_probability, target[:, None], axis=1)[:, 0]
    return -(weight * chosen).sum(), weight.sum()


def _terms(config: LossConfig, sums: Sums) -> dict[str, Float[Array, ""]]:
    """Normalises over the batch (the leading axis of `sums`; the second is the predictions) and names the terms."""
    total = jax.tree.map(lambda values: values.sum(0), sums)
    values = {
        "class": config.class_weight * total.cross_entropy / (total.class_weight + EPSILON),
        "mask": config.mask_weight * total.mask / (total.masks * config.points + EPSILON),
        "dice": config.dice_weight * total.dice / (total.masks + EPSILON),
    }
    last = len(total.masks) - 1
    names = ["last", *map(str, range(last))]
    return {f"{term}/{name}": value[i - 1] for i, name in enumerate(names) for term, value in values.items()}
