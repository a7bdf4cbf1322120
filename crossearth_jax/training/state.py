"""The training state, and its creation in place on the mesh."""

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
    """All that changes in a step. Frozen parameters are not here: they are neither optimised nor checkpointed."""

    step: jax.Array  # int32 scalar: steps done
    trainable: Params
    opt_state: Any
    average: Params | None  # exponential moving average of `trainable`, when the config asks for one

    @property
    def evaluated(self) -> Params:
        """The parameters that evaluation uses: the average where there is one."""
        return self.trainable if self.average is None else self.average


def split_names(table: tuple[tuple[str, bool], ...], shapes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Splits parameter names into (trainable, frozen) by the exhaustive freezing table."""
    frozen = regex_table.resolve(table, shapes, "freezing")
    regex_table.log_summary(frozen, {name: shape.size for name, shape in shapes.items()}, "frozen")
    return [name for name in shapes if not frozen[name]], [name for name in shapes if frozen[name]]


def state_shardings(mesh: Mesh, state: TrainState, params: Mapping[str, NamedSharding]) -> TrainState:
    """Gives every leaf its sharding: leaves filed under a parameter's name and shape follow it, others replicate."""

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path[-1].key if isinstance(path[-1], jax.tree_util.DictKey) else ""
        if name in params and leaf.shape == state.trainable[name].shape:
            return params[name]
        return parallel.replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def create_state(trainable: Params, optimizer: optax.GradientTransformation, averaged: bool) -> TrainState:
    """The state before the first step; jittable, and with `jax.eval_shape` its shapes."""
    # The average starts as a copy: a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, trainable) if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), average)


def log_memory(mesh: Mesh, shapes: Any, shardings: Any, what: str) -> None:
    """Logs the bytes that a sharded tree takes on each device."""
    size = parallel.bytes_per_device(shapes, shardings)
    logging.info("%s: %.1f MiB on each of %d devices, mesh %s", what, size / 2**20, mesh.size, dict(mesh.shape))
