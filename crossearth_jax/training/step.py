"""One training step as one function, from a batch of images to the next state.

`training.program.build_program` binds the first five arguments, which depend only on the config, and compiles the
function. All random numbers are derived from the seed and the step, so that a resumed run has the same augmentations,
styles, masks and points as an uninterrupted run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from crossearth_jax.augment.masking import content_mask
from crossearth_jax.augment.pipeline import augment, named_key
from crossearth_jax.augment.style_injection import Injection
from crossearth_jax.config import Config
from crossearth_jax.losses.mim import compared_pixels, reconstruction_loss
from crossearth_jax.losses.segmentation import segmentation_loss, segmentation_normalisers
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.models.segmentation_head import Features, Training
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.training import optimizer as optimizers
from crossearth_jax.training.state import Params, TrainState
from crossearth_jax.training.styles import of_styled

Terms = dict[str, jax.Array]
Batch = dict[str, jax.Array]


class AugmentedBatch(NamedTuple):
    """An augmented batch: images with and without injected styles, labels, and which pixels are not padding."""

    clean: Float[Array, "b s s 3"]  # normalised
    shown: Float[Array, "b s s 3"]  # the same after Earth-Style Injection
    styled: Bool[Array, " b"]  # which images were restyled
    labels: UInt8[Array, "b s s"]
    inside: Bool[Array, "b s s"]  # which pixels are not padding


def train_step(
    config: Config,
    model: SegmentationModel,
    optimizer: optax.GradientTransformation,
    inject: Injection,
    style_groups: int,
    state: TrainState,
    frozen: Params,
    batch: Batch,
) -> tuple[TrainState, Terms, Params]:
    """Augment and restyle a batch, compute the losses and their gradients, and update the parameters.

    Args:
      config: its tasks are segmentation (`loss`), masked image modelling (`mim`; alone: pretraining without labels), or
        both.
      model: the network without its parameters.
      optimizer: optimizer of the trainable parameters.
      inject: Earth-Style Injection, or `styles.no_injection`.
      style_groups: number of equal parts of a (micro-)batch in which `inject` chooses images independently.
      state: state before the step.
      frozen: frozen parameters, including those of the style network.
      batch: uint8 `image` (b, h, w, 3) and `label` (b, h, w); int32 `size` (b, 2), height and width without padding, if
        images are padded.

    Returns:
      The state after the step, its metrics, and the gradients.
    """

    def augmented(batch: Batch, key: PRNGKeyArray) -> AugmentedBatch:
        images, labels, inside = augment(
            config.augment, named_key(key, "augment"), batch["image"], batch["label"], batch.get("size")
        )
        clean = normalize(images)
        shown, styled = inject(frozen, named_key(key, "style"), clean, inside)
        return AugmentedBatch(clean, shown, styled, labels, inside)

    def loss(trainable: Params, views: AugmentedBatch, key: PRNGKeyArray, shares: Terms) -> tuple[jax.Array, Terms]:
        params, terms = trainable | frozen, {}
        inputs = [] if config.loss is None else [views.shown]
        if config.mim is not None:
            whole = views.shown if config.loss is None else views.clean
            token = params["mim/mask_token"]
            inputs.append(content_mask(config.mim, named_key(key, "content"), whole, token, views.inside))
        # One backbone pass for both tasks. The two images of a sample are adjacent, so that both stay on one device.
        images = rearrange(inputs, "n b h w c -> (b n) h w c")
        features = model.features(params, images, for_head_only=config.mim is None)
        per_image = (features.levels, features.tokens)
        by_input = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=len(inputs)), per_image)

        def of_input(n: int) -> Features:
            levels, tokens = jax.tree.map(lambda x: x[n], by_input)
            return features._replace(levels=levels, tokens=tokens)

        if config.loss is not None:
            training = Training(state.step / config.train.steps, named_key(key, "head"))
            predictions = model.decode(params, of_input(0), training)
            terms |= segmentation_loss(config.loss, named_key(key, "points"), predictions, views.labels)
        if config.mim is not None:
            from_masked = model.reconstruct(params, of_input(-1).levels)
            from_styled, styled = from_masked, jnp.zeros_like(views.styled)
            if config.loss is not None:
                rebuild = functools.partial(model.reconstruct, params)
                from_styled = of_styled(rebuild, config.style, style_groups, views.styled, of_input(0).levels)
                styled = views.styled
            terms |= reconstruction_loss(config.mim, views.clean, from_masked, from_styled, styled, views.inside)
        terms = {name: shares.get(name.split("/")[0], 1.0) * term for name, term in terms.items()}
        total = sum(terms.values(), jnp.zeros(()))
        return total, {f"loss/{name}": term for name, term in terms.items()} | {"loss": total}

    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient = functools.partial(jax.grad(loss, has_aux=True), state.trainable)
    if config.optimizer.accumulate == 1:
        gradients, terms = gradient(augmented(batch, key), key, {})
    else:
        gradients, terms = over_micro_batches(config, model, augmented, gradient, batch, key)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    average = optimizers.average(config.optimizer.ema, state.step, state.average, trainable)
    norm = optax.tree.norm(gradients)
    # The updates are checked too: an overflow only there would damage the parameters of the next checkpoint.
    finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
    # A step that is not finite changes no parameters, so that training can continue or the step can be replayed.
    new = TrainState(state.step, trainable, opt_state, average)
    new = jax.tree.map(lambda changed, old: jnp.where(finite, changed, old), new, state)
    rate = optimizers.schedule(config.optimizer, config.horizon)(state.step)
    metrics = terms | {"gradient_norm": norm, "learning_rate": rate, "nonfinite": ~finite}
    return new._replace(step=state.step + 1), metrics, gradients


def over_micro_batches(
    config: Config,
    model: SegmentationModel,
    augmented: Callable[[Batch, PRNGKeyArray], AugmentedBatch],
    gradient: Callable[[AugmentedBatch, PRNGKeyArray, Terms], tuple[Params, Terms]],
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[Params, Terms]:
    """Return gradients and loss terms of the whole batch, computed in `accumulate` micro-batches to save memory.

    A loss term is a mean over pixels or masks. Micro-batches hold different numbers of them, so each micro-batch is
    weighted by its share. The shares depend on the augmented labels, so all micro-batches are augmented first.

    Args:
      config: configuration of the run.
      model: the network without its parameters.
      augmented: function that augments a batch.
      gradient: function that returns gradients and loss terms, with each kind of term multiplied by the given share.
      batch: batch of the step.
      key: random key of the step.
    """
    count = config.optimizer.accumulate
    # The micro-batch index varies fastest, so that every micro-batch holds samples of every device.
    micro = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), batch)
    keys = jax.random.split(key, count)

    def prepare(inputs: tuple[Batch, PRNGKeyArray]) -> tuple[AugmentedBatch, Terms]:
        views = augmented(*inputs)
        return views, normalisers(config, model, views)

    views, sums = jax.lax.map(prepare, (micro, keys))
    shares = {name: parts / jnp.where(parts.sum() > 0, parts.sum(), 1) for name, parts in sums.items()}
    inputs = (views, keys, shares)
    shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], inputs))
    total, _ = jax.lax.scan(
        lambda total, inputs: (jax.tree.map(jnp.add, total, gradient(*inputs)), None),
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        inputs,
    )
    return total


def normalisers(config: Config, model: SegmentationModel, views: AugmentedBatch) -> Terms:
    """Return the divisor of each kind of loss term of a batch; the kind is the first part of the term's name."""
    found: Terms = {}
    if config.loss is not None:
        found |= segmentation_normalisers(config.loss, config.model.classes, model.queries, views.labels)
    if config.mim is not None:
        assert config.model.mim is not None
        found["mim"] = compared_pixels(views.inside, config.model.mim.image_size).sum().astype(jnp.float32)
    return found
