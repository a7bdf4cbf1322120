"""The training state, its shardings and its creation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding

from crossearth_jax.runtime import parallel, regex_table

Params = dict[str, jax.Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


class TrainState(NamedTuple):
    """All arrays that change in a step; frozen parameters are neither optimised nor checkpointed."""

    step: jax.Array  # int32 scalar: steps done
    trainable: Params
    opt_state: Any
    average: Params | None  # exponential moving average of `trainable`, if the config has one

    @property
    def evaluated(self) -> Params:
        """The parameters that evaluation uses: the average if there is one."""
        return self.trainable if self.average is None else self.average


def split_names(table: tuple[tuple[str, bool], ...], shapes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Split parameter names into (trainable, frozen) by the freezing table.

    Raises:
      UserError: the table has no pattern for a parameter.
    """
    frozen = regex_table.resolve(table, shapes, "freezing")
    regex_table.log_summary(frozen, {name: shape.size for name, shape in shapes.items()}, "frozen")
    return [name for name in shapes if not frozen[name]], [name for name in shapes if frozen[name]]


def state_shardings(mesh: Mesh, state: TrainState, params: Mapping[str, NamedSharding]) -> TrainState:
    """Return the sharding of every leaf: that of the parameter with the same name and shape, else replicated."""

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path[-1].key if isinstance(path[-1], jax.tree_util.DictKey) else ""
        if name in params and leaf.shape == state.trainable[name].shape:
            return params[name]
        return parallel.replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def create_state(trainable: Params, optimizer: optax.GradientTransformation, averaged: bool) -> TrainState:
    """Return the state before the first step; works under `jax.jit` and `jax.eval_shape`."""
    # The average starts as a copy, because a donated state must not hold a buffer twice.
    average = jax.tree.map(jnp.copy, trainable) if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), average)


def log_memory(mesh: Mesh, shapes: Any, shardings: Any, what: str) -> None:
    """Log the memory that a sharded tree takes on each device."""
    size = parallel.bytes_per_device(shapes, shardings)
    logging.info("%s: %.1f MiB on each of %d devices, mesh %s", what, size / 2**20, mesh.size, dict(mesh.shape))
