"""One training step, from a batch of tiles to the next state, in one function that reads from top to bottom.

What the config decides is static: `training.program.build_program` binds the first five arguments and compiles the
rest. All random numbers come from the seed and the number of the step, so that a resumed run sees the same
augmentations, styles, masks and points as one that was never stopped.
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
from crossearth_jax.models.network import Features, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.training import optimizer as optimizers
from crossearth_jax.training.state import Params, TrainState
from crossearth_jax.training.styles import of_styled

Terms = dict[str, jax.Array]
Batch = dict[str, jax.Array]


class AugmentedBatch(NamedTuple):
    """What the network is shown and what it is compared with."""

    clean: Float[Array, "b s s 3"]  # normalised
    shown: Float[Array, "b s s 3"]  # the same with styles injected
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
    """Augments and restyles a batch, predicts, compares, and updates the parameters.

    Args:
      config: its tasks are segmentation (`loss`), masked image modelling (`mim`; alone it is pretraining without
        labels), or both.
      model: the network without its parameters.
      optimizer: of the trainable parameters.
      inject: Earth-Style Injection, or `styles.no_injection`.
      style_groups: equal parts of a (micro-)batch in which `inject` chooses images on its own.
      state: before the step.
      frozen: parameters that do not change, those of the style network included.
      batch: uint8 `image` (b, h, w, 3) and `label` (b, h, w); `size` (b, 2) if not every image fills its tile.

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
        # One backbone pass for both tasks. The images of an example lie side by side, so that none changes device.
        features = model.features(params, rearrange(inputs, "n b h w c -> (b n) h w c"))
        levels = [rearrange(level, "(b n) h w c -> n b h w c", n=len(inputs)) for level in features.levels]
        levels_of = [tuple(level[n] for level in levels) for n in range(len(inputs))]
        if config.loss is not None:
            predictions = model.decode(params, Features(levels_of[0], features.queries))
            terms |= segmentation_loss(config.loss, named_key(key, "points"), predictions, views.labels)
        if config.mim is not None:
            from_masked = model.reconstruct(params, levels_of[-1])
            from_styled, styled = from_masked, jnp.zeros_like(views.styled)
            if config.loss is not None:
                rebuild = functools.partial(model.reconstruct, params)
                from_styled = of_styled(rebuild, config.style, style_groups, views.styled, levels_of[0])
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
        gradients, terms = over_micro_batches(config, augmented, gradient, batch, key)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable: Any = optax.apply_updates(state.trainable, updates)
    average = optimizers.average(config.optimizer.ema, state.step, state.average, trainable)
    norm = optax.tree.norm(gradients)
    # The updates too: a step that overflows only there would spoil the parameters for the next checkpoint.
    finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
    # A step that is not finite leaves the parameters alone, so that training can go on or be looked into.
    new = TrainState(state.step, trainable, opt_state, average)
    new = jax.tree.map(lambda changed, old: jnp.where(finite, changed, old), new, state)
    rate = optimizers.schedule(config.optimizer, config.horizon)(state.step)
    metrics = terms | {"gradient_norm": norm, "learning_rate": rate, "nonfinite": ~finite}
    return new._replace(step=state.step + 1), metrics, gradients


def over_micro_batches(
    config: Config,
    augmented: Callable[[Batch, PRNGKeyArray], AugmentedBatch],
    gradient: Callable[[AugmentedBatch, PRNGKeyArray, Terms], tuple[Params, Terms]],
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[Params, Terms]:
    """Gradients and loss terms of the whole batch, in the memory of one of its `accumulate` micro-batches.

    A term is a mean over pixels or masks, of which micro-batches hold unequal numbers: each counts by its share of
    them. The shares follow from the labels, so all micro-batches are augmented first.

    Args:
      config: of the run.
      augmented: what the network is shown of a batch.
      gradient: gradients and loss terms, each kind of term multiplied by the micro-batch's share.
      batch: of the step.
      key: of the step.
    """
    count = config.optimizer.accumulate
    # The micro-batch index is the fast axis: every micro-batch then holds a share of every device's examples.
    micro = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), batch)
    keys = jax.random.split(key, count)

    def prepare(inputs: tuple[Batch, PRNGKeyArray]) -> tuple[AugmentedBatch, Terms]:
        views = augmented(*inputs)
        return views, normalisers(config, views)

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


def normalisers(config: Config, views: AugmentedBatch) -> Terms:
    """What each kind of loss term (the first part of its name) of a batch is divided by."""
    found: Terms = {}
    if config.loss is not None:
        found |= segmentation_normalisers(config.loss, config.model, views.labels)
    if config.mim is not None:
        assert config.model.mim is not None
        found["mim"] = compared_pixels(views.inside, config.model.mim.image_size).sum().astype(jnp.float32)
    return found
