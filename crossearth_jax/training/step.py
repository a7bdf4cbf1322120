"""One training step as pure functions of (state, frozen, batch).

`train_step = update(loss)`: a loss is chosen once, when the step is built, from the tasks the config names; nothing
inside the jitted function asks for a flag. All randomness is folded from the step number, so that a resumed run sees
the same augmentations, styles, masks and points as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from crossearth_jax.augment.masking import content_mask
from crossearth_jax.augment.pipeline import augment
from crossearth_jax.config import Config
from crossearth_jax.losses.mask_set import mask_set_loss
from crossearth_jax.losses.mim import reconstruction_loss
from crossearth_jax.models.segmentor import Features, SegmentationModel
from crossearth_jax.training import optimizer as optimizers
from crossearth_jax.training.state import Params, TrainState

Terms = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Loss = Callable[[Params, Params, Any, jax.Array], Terms]
Inject = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Example(NamedTuple):
    """A batch after augmentation: what the network is shown and what it is held to."""

    clean: Float[Array, "b s s 3"]  # normalised
    shown: Float[Array, "b s s 3"]  # the same with styles injected
    styled: jax.Array  # which images were restyled, bool (b,)
    labels: UInt8[Array, "b s s"]


def make_train_step(
    config: Config, model: SegmentationModel, optimizer: optax.GradientTransformation, inject: Inject | None = None
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Terms]]:
    """Builds `(state, frozen, batch) -> (state, metrics)`; the caller jits it with shardings.

    Args:
      inject: Earth-Style Injection `(frozen, key, images) -> (images, styled)`, or None for a run without it.
    """
    loss = make_loss(config, model)
    schedule = optimizers.schedule(config.optimizer)

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Terms]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradients, terms = _accumulate(config, loss, inject, state.trainable, frozen, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        average = None
        if config.optimizer.ema is not None:
            average = optimizers.average(config.optimizer.ema, state.step, state.average, trainable)
        terms["gradient_norm"] = optax.global_norm(gradients)
        finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(terms["gradient_norm"])
        new = TrainState(state.step, trainable, opt_state, average)
        # A step that is not finite leaves the parameters alone, so the state can be saved and looked into.
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = terms | {"learning_rate": schedule(state.step), "nonfinite": ~finite}
        return new._replace(step=state.step + 1), metrics

    return train_step


def _accumulate(
    config: Config,
    loss: Loss,
    inject: Inject | None,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[Params, Terms]:
    """Gradients and loss terms, averaged over the micro-batches."""

    def total(trainable: Params, batch: Batch, key: PRNGKeyArray) -> tuple[jax.Array, Terms]:
        shown_key, loss_key = jax.random.split(key)
        example = make_example(config, inject, frozen, shown_key, batch)
        terms = loss(trainable, frozen, example, loss_key)
        value = sum(terms.values(), jnp.zeros(()))
        return value, {f"loss/{name}": term for name, term in terms.items()} | {"loss": value}

    gradient = jax.grad(total, has_aux=True)
    count = config.optimizer.accumulate
    if count == 1:
        return gradient(trainable, batch, key)
    # The micro-batch index is the fast axis: every micro-batch then holds a share of every device's examples.
    micro = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), batch)

    def add(carry: Any, inputs: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(trainable, *inputs)), None

    keys = jax.random.split(key, count)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, trainable, batch, key))
    sums, _ = jax.lax.scan(add, zeros, (micro, keys))
    return jax.tree.map(lambda x: x / count, sums)


def make_example(config: Config, inject: Inject | None, frozen: Params, key: PRNGKeyArray, batch: Batch) -> Example:
    """Augments, normalises and restyles a uint8 batch."""
    augment_key, style_key = jax.random.split(key)
    images, labels = augment(config.augment, augment_key, batch["image"], batch["label"])
    if inject is None:
        return Example(images, images, jnp.zeros(images.shape[0], bool), labels)
    shown, styled = inject(frozen, style_key, images)
    return Example(images, shown, styled, labels)


def make_loss(config: Config, model: SegmentationModel) -> Loss:
    """The loss of the tasks the config names: segmentation alone, or with masked image modelling."""

    def segmentation(trainable: Params, frozen: Params, example: Example, key: PRNGKeyArray) -> Terms:
        params = trainable | frozen
        predictions = model.decode(params, model.features(params, example.shown))
        return mask_set_loss(config.loss, key, *predictions, example.labels)

    def multi_task(trainable: Params, frozen: Params, example: Example, key: PRNGKeyArray) -> Terms:
        assert config.mim is not None
        params = trainable | frozen
        content_key, points_key = jax.random.split(key)
        masked = content_mask(config.mim, content_key, example.clean, params["mim/mask_token"])
        # One backbone pass for both tasks; the new axis comes second, so that no example changes device.
        stacked = rearrange([example.shown, masked], "n b h w c -> (b n) h w c")
        features = model.features(params, stacked)
        shown_levels, masked_levels = _unstack(features.levels)
        predictions = model.decode(params, Features(shown_levels, features.queries))
        terms = mask_set_loss(config.loss, points_key, *predictions, example.labels)
        return terms | reconstruction_loss(
            config.mim,
            example.clean,
            model.reconstruct(params, masked_levels),
            model.reconstruct(params, shown_levels),
            example.styled,
        )

    return segmentation if config.mim is None else multi_task


def _unstack(levels: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    pairs = [rearrange(level, "(b n) h w c -> n b h w c", n=2) for level in levels]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
