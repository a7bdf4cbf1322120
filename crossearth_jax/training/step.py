"""One training step as pure functions of (state, frozen, batch).

What a run does is decided once, when its step is built from the tasks the config names; nothing inside the jitted
function asks for a flag. All randomness is folded from the step number, so that a resumed run sees the same
augmentations, styles, masks and points as one that was never stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from crossearth_jax.augment.masking import content_mask
from crossearth_jax.augment.pipeline import augment, named_key
from crossearth_jax.augment.style_injection import Injection
from crossearth_jax.config import Config, LossConfig, MimTaskConfig, StyleConfig, UserError
from crossearth_jax.losses.mask_set import mask_set_loss, mask_set_normalisers
from crossearth_jax.losses.mim import compared_pixels, reconstruction_loss
from crossearth_jax.losses.pixel import labelled_pixels, pixel_loss
from crossearth_jax.models.network import Features, SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.training import optimizer as optimizers
from crossearth_jax.training.state import Params, TrainState
from crossearth_jax.training.styled import of_styled

Terms = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Loss = Callable[[Params, Params, Any, jax.Array], Terms]
Criterion = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Terms]  # of key, class logits, mask logits, labels


class Example(NamedTuple):
    """A batch after augmentation: what the network is shown and what it is held to."""

    clean: Float[Array, "b s s 3"]  # normalised
    shown: Float[Array, "b s s 3"]  # the same with styles injected
    styled: Bool[Array, " b"]  # which images were restyled
    labels: UInt8[Array, "b s s"]
    inside: Bool[Array, "b s s"] | None = None  # which pixels are not padding; None: all


def make_train_step(
    config: Config, model: SegmentationModel, optimizer: optax.GradientTransformation, loss: Loss, inject: Injection
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Terms]]:
    """Builds `(state, frozen, batch) -> (state, metrics)`; the caller jits it with shardings.

    Args:
      loss: `(trainable, frozen, example, key) -> terms`, from `make_loss`.
      inject: Earth-Style Injection, or `no_injection`.
    """
    schedule = optimizers.schedule(config.optimizer, config.horizon)
    differentiate = make_gradients(config, loss, inject)

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Terms]:
        gradients, terms = differentiate(state, frozen, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        average = None
        if config.optimizer.ema is not None:
            average = optimizers.average(config.optimizer.ema, state.step, state.average, trainable)
        norm = optax.tree.norm(gradients)
        # The updates too: a step that overflows only there would spoil the parameters for the next checkpoint.
        finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        new = TrainState(state.step, trainable, opt_state, average)
        # A step that is not finite leaves the parameters alone, so that training can go on or be looked into.
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = terms | {"gradient_norm": norm, "learning_rate": schedule(state.step), "nonfinite": ~finite}
        return new._replace(step=state.step + 1), metrics

    return train_step


def make_gradients(
    config: Config, loss: Loss, inject: Injection
) -> Callable[[TrainState, Params, Batch], tuple[Params, Terms]]:
    """Builds `(state, frozen, batch) -> (gradients, loss terms)`: a step up to what the optimizer is given."""

    def gradients(state: TrainState, frozen: Params, batch: Batch) -> tuple[Params, Terms]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        return _accumulate(config, loss, inject, state.trainable, frozen, batch, key)

    return gradients


def no_injection(
    params: Mapping[str, jax.Array],
    key: PRNGKeyArray,
    images: Float[Array, "b h w 3"],
    inside: Bool[Array, "b h w"] | None = None,
) -> tuple[Float[Array, "b h w 3"], Bool[Array, " b"]]:
    """Leaves the images as they are."""
    del params, key, inside
    return images, jnp.zeros(len(images), bool)


def make_example(config: Config, inject: Injection, frozen: Params, key: PRNGKeyArray, batch: Batch) -> Example:
    """Augments, normalises and restyles a uint8 batch; without `size` in it every image fills its tile."""
    images, labels, inside = augment(
        config.augment, named_key(key, "augment"), batch["image"], batch["label"], batch.get("size")
    )
    images = normalize(images)
    shown, styled = inject(frozen, named_key(key, "style"), images, inside)
    return Example(images, shown, styled, labels, inside)


def make_loss(config: Config, model: SegmentationModel, shards: int = 1) -> Loss:
    """Builds the loss of the tasks that the config names.

    Segmentation (`config.loss`), masked image modelling (`config.mim`, which alone is pretraining without labels),
    or both on one backbone pass.

    Args:
      shards: number of pieces the batch is sharded into.

    Raises:
      UserError: the config names no task.
    """
    if config.loss is not None and config.mim is not None:
        return _multi_task_loss(config.loss, config.mim, config.style, model, shards)
    if config.loss is not None:
        return _segmentation_loss(config.loss, model)
    if config.mim is not None:
        return _reconstruction_loss(config.mim, model)
    raise UserError("the config names no task; set loss (segmentation), mim (masked image modelling) or both")


def make_criterion(loss: LossConfig) -> Criterion:
    """What predictions are held to: the set loss, beside it the pixels' cross-entropy if the config weighs it."""
    if loss.pixel_weight == 0:
        return functools.partial(mask_set_loss, loss)

    def both(key: PRNGKeyArray, class_logits: jax.Array, mask_logits: jax.Array, labels: jax.Array) -> Terms:
        terms = mask_set_loss(loss, key, class_logits, mask_logits, labels)
        return terms | pixel_loss(loss, class_logits, mask_logits, labels)

    return both


def _segmentation_loss(loss: LossConfig, model: SegmentationModel) -> Loss:
    criterion = make_criterion(loss)

    def segmentation(trainable: Params, frozen: Params, example: Example, key: PRNGKeyArray) -> Terms:
        params = trainable | frozen
        predictions = model.decode(params, model.features(params, example.shown))
        return criterion(named_key(key, "points"), *predictions, example.labels)

    return segmentation


def _reconstruction_loss(mim: MimTaskConfig, model: SegmentationModel) -> Loss:
    def reconstruction(trainable: Params, frozen: Params, example: Example, key: PRNGKeyArray) -> Terms:
        params = trainable | frozen
        masked = _content_masked(mim, key, example.shown, example.inside, params["mim/mask_token"])
        rebuilt = model.reconstruct(params, model.features(params, masked).levels)
        unstyled = jnp.zeros(len(rebuilt), bool)
        return reconstruction_loss(mim, example.clean, rebuilt, rebuilt, unstyled, example.inside)

    return reconstruction


def _multi_task_loss(
    loss: LossConfig, mim: MimTaskConfig, style: StyleConfig | None, model: SegmentationModel, shards: int
) -> Loss:
    groups = (style and style.groups) or shards
    criterion = make_criterion(loss)

    def multi_task(trainable: Params, frozen: Params, example: Example, key: PRNGKeyArray) -> Terms:
        params = trainable | frozen
        masked = _content_masked(mim, key, example.clean, example.inside, params["mim/mask_token"])
        # The two images of an example lie next to each other, so that no example changes device.
        features = model.features(params, rearrange([example.shown, masked], "n b h w c -> (b n) h w c"))
        shown_levels, masked_levels = _unstack(features.levels)
        predictions = model.decode(params, Features(shown_levels, features.queries))
        terms = criterion(named_key(key, "points"), *predictions, example.labels)
        from_masked = model.reconstruct(params, masked_levels)
        from_styled = of_styled(
            lambda levels: model.reconstruct(params, levels), style, groups, example.styled, shown_levels
        )
        return terms | reconstruction_loss(mim, example.clean, from_masked, from_styled, example.styled, example.inside)

    return multi_task


def _content_masked(
    mim: MimTaskConfig, key: PRNGKeyArray, images: jax.Array, inside: jax.Array | None, token: jax.Array
) -> jax.Array:
    """Images with random blocks replaced by the token, which leaves padding as it is."""
    masked = content_mask(mim, named_key(key, "content"), images, token)
    return masked if inside is None else jnp.where(inside[..., None], masked, images)


def _unstack(levels: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    pairs = [rearrange(level, "(b n) h w c -> n b h w c", n=2) for level in levels]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def _accumulate(
    config: Config, loss: Loss, inject: Injection, trainable: Params, frozen: Params, batch: Batch, key: PRNGKeyArray
) -> tuple[Params, Terms]:
    """Gradients and loss terms: those of one batch, however many micro-batches it is cut into."""

    def total(trainable: Params, example: Example, key: PRNGKeyArray, shares: Terms) -> tuple[jax.Array, Terms]:
        terms = loss(trainable, frozen, example, key)
        terms = {name: shares.get(name.split("/")[0], 1.0) * term for name, term in terms.items()}
        value = sum(terms.values(), jnp.zeros(()))
        return value, {f"loss/{name}": term for name, term in terms.items()} | {"loss": value}

    gradient = jax.grad(total, has_aux=True)
    count = config.optimizer.accumulate
    if count == 1:
        return gradient(trainable, make_example(config, inject, frozen, key, batch), key, {})
    # The micro-batch index is the fast axis: every micro-batch then holds a share of every device's examples.
    micro = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), batch)
    keys = jax.random.split(key, count)

    # A term is a mean over pixels or masks, of which micro-batches hold unequal numbers: each counts by its share of
    # them. The shares follow from the labels, so all examples are made first.
    def make(inputs: tuple[Batch, PRNGKeyArray]) -> tuple[Example, Terms]:
        example = make_example(config, inject, frozen, inputs[1], inputs[0])
        return example, _normalisers(config, example)

    examples, normalisers = jax.lax.map(make, (micro, keys))
    shares = {name: parts / jnp.where(parts.sum() > 0, parts.sum(), 1) for name, parts in normalisers.items()}

    def add(sums: Any, inputs: tuple[Example, PRNGKeyArray, Terms]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(trainable, *inputs)), None

    inputs = (examples, keys, shares)
    shapes = jax.eval_shape(gradient, trainable, *jax.tree.map(lambda x: x[0], inputs))
    sums, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), inputs)
    return sums


def _normalisers(config: Config, example: Example) -> Terms:
    """What each kind of loss term (the first part of its name) of a batch is divided by."""
    found: Terms = {}
    if config.loss is not None:
        reins, head = config.model.reins, config.model.head
        assert head is not None
        sums = mask_set_normalisers(
            config.loss, reins.tokens if reins else head.queries, config.model.classes, example.labels
        )
        pixels = labelled_pixels(example.labels, config.model.classes).sum().astype(jnp.float32)
        found |= {"class": sums["class"], "mask": sums["mask"], "dice": sums["mask"], "pixel": pixels}
    if config.mim is not None:
        assert config.model.mim is not None and example.inside is not None
        found["mim"] = compared_pixels(example.inside, config.model.mim.image_size).sum().astype(jnp.float32)
    return found
