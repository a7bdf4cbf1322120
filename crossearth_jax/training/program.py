"""The static part of a run: model, optimizer, shapes, shardings and the jitted step."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from crossearth_jax.config import Config, UserError
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.runtime import parallel
from crossearth_jax.training.optimizer import make_optimizer
from crossearth_jax.training.state import (
    Params,
    Shapes,
    TrainState,
    create_state,
    log_memory,
    split_names,
    state_shardings,
)
from crossearth_jax.training.step import Batch, Terms, train_step
from crossearth_jax.training.styles import build_styles


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a run; `step` is compiled at its first call, or ahead of time from the shapes."""

    config: Config
    mesh: Mesh
    model: SegmentationModel
    optimizer: optax.GradientTransformation
    trainable: Shapes
    frozen: Shapes
    state: TrainState  # shapes
    state_shardings: TrainState
    frozen_shardings: dict[str, NamedSharding]
    step: Any  # jitted (state, frozen, batch) -> (state, metrics)
    gradients: Any  # jitted (state, frozen, batch) -> (gradients, metrics), for the replay of a step

    def create_state(self, trainable: Params) -> TrainState:
        """Return the state before the first step, created with its shardings."""
        return jax.jit(_create(self.config, self.optimizer), out_shardings=self.state_shardings)(trainable)


def _create(config: Config, optimizer: optax.GradientTransformation) -> Any:
    return functools.partial(create_state, optimizer=optimizer, averaged=config.optimizer.ema is not None)


def build_program(config: Config, mesh: Mesh) -> Program:
    """Build the static part of a run from its config: model, optimizer, shardings and the jitted step.

    Raises:
      UserError: a table has no pattern for a parameter, the batch is not divisible over the mesh, the loss or the style
        statistics (`styles.build_styles`) do not fit the model.
    """
    check_batch(config, mesh)
    styles = build_styles(config, parallel.batch_shards(mesh))
    model = SegmentationModel(config.model)
    check_loss(config, model)
    shapes = model.shapes()
    trainable_names, frozen_names = split_names(config.train.frozen, shapes)
    trainable = {name: shapes[name] for name in trainable_names}
    frozen = {name: shapes[name] for name in frozen_names} | styles.shapes
    optimizer = make_optimizer(config.optimizer, config.horizon, trainable)
    state = jax.eval_shape(_create(config, optimizer), trainable)
    axes = model.axes() | dict.fromkeys(styles.shapes, ())
    shardings = state_shardings(mesh, state, parallel.param_shardings(mesh, trainable, axes))
    frozen_shardings = parallel.param_shardings(mesh, frozen, axes)
    log_memory(mesh, state, shardings, "training state")
    log_memory(mesh, frozen, frozen_shardings, "frozen parameters")
    take = functools.partial(train_step, config, model, optimizer, styles.inject, styles.groups)

    inputs, whole = (shardings, frozen_shardings, parallel.batch_sharding(mesh)), parallel.replicated(mesh)

    @functools.partial(jax.jit, in_shardings=inputs, out_shardings=(shardings, whole), donate_argnums=0)
    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Terms]:
        return take(state, frozen, batch)[:2]

    @functools.partial(jax.jit, in_shardings=inputs, out_shardings=(shardings.trainable, whole))
    def gradients(state: TrainState, frozen: Params, batch: Batch) -> tuple[Params, Terms]:
        _, metrics, gradients = take(state, frozen, batch)
        return gradients, metrics

    return Program(
        config, mesh, model, optimizer, trainable, frozen, state, shardings, frozen_shardings, step, gradients
    )


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raise a UserError if the global batch cannot be divided evenly over device shards and micro-batches."""
    shards, micro = parallel.batch_shards(mesh), config.optimizer.accumulate
    if config.data.batch_size % (shards * micro):
        raise UserError(
            f"data.batch_size = {config.data.batch_size} is not divisible by {shards} device shards x {micro} "
            f"micro-batches; choose a multiple of {shards * micro}"
        )


def check_loss(config: Config, model: SegmentationModel) -> None:
    """Raise a UserError if the loss has no term for a head that classifies pixels."""
    head, loss = config.model.head, config.loss
    if head is not None and loss is not None and model.queries is None and not loss.pixel_weight:
        raise UserError(
            f"loss.pixel_weight is 0, but the head '{head.kind}' is trained with this loss; set it, e.g. to 1.0"
        )
