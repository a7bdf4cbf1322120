"""What a run starts from: drawn parameters, weights files over them, and the frozen style network beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import jax
import numpy as np
from absl import logging

from crossearth_jax.augment.style_injection import Injection, style_injection
from crossearth_jax.config import Config, UserError
from crossearth_jax.models.style_network import StyleKind, StyleNetwork
from crossearth_jax.runtime import parallel
from crossearth_jax.training.checkpoint import RunIdentity
from crossearth_jax.training.program import Program
from crossearth_jax.training.state import Params, Shapes
from crossearth_jax.training.step import no_injection
from crossearth_jax.weights.native import digest
from crossearth_jax.weights.starting import starting_weights
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics


def style_parts(config: Config, shards: int) -> tuple[Shapes, Injection]:
    """Shapes of the style network's parameters and the injection that reads them from the frozen ones.

    Args:
      shards: pieces the batch is cut into.

    Raises:
      UserError: the statistics are missing, damaged, of another network, or hold a domain the run is scored on; or
        `style.groups` is no multiple of the shards.
    """
    if config.style is None:
        return {}, no_injection
    groups = config.style.groups or shards
    if groups % shards:
        raise UserError(f"style.groups is {groups}, expected a multiple of the {shards} device shards of the batch")
    network = style_network(config)
    statistics = load_statistics(config.style.statistics, network.kind)
    statistics.check_targets(config.data.source, config.data.data_dir)
    return network.shapes(), style_injection(config.style, network, statistics.sampler, groups)


def style_targets(config: Config) -> tuple[str, ...]:
    """Domains the run is scored on whose images its style statistics were made from, as their maker allowed.

    Raises:
      UserError: see `style_parts`.
    """
    if config.style is None:
        return ()
    statistics = load_statistics(config.style.statistics, style_network(config).kind)
    return statistics.check_targets(config.data.source, config.data.data_dir)


def style_network(config: Config) -> StyleNetwork:
    """The style network that the config names.

    Raises:
      UserError: there is none of that name.
    """
    assert config.style is not None
    if config.style.backend not in get_args(StyleKind):
        raise UserError(f"style.backend is '{config.style.backend}', expected one of {', '.join(get_args(StyleKind))}")
    return StyleNetwork(cast(StyleKind, config.style.backend), config.model.dtype)


def initial_params(program: Program) -> tuple[Params, Params]:
    """Returns (trainable, frozen), sharded; a pure function of the config's seed and files.

    Raises:
      UserError: a weights file is missing, broken or does not fit the model.
    """
    config, model = program.config, program.model
    shardings: Any = program.state_shardings.trainable | program.frozen_shardings
    drawn = {name: shardings[name] for name in model.shapes()}
    params = jax.jit(model.init, out_shardings=drawn)(jax.random.key(config.seed))
    if config.train.init_from is not None:
        params |= _put(starting_weights(Path(config.train.init_from), config.model), shardings)
    elif any(not name.startswith("style/") for name in program.frozen):
        logging.warning("frozen parameters are drawn at random: train.init_from names no weights file")
    if config.style is not None:
        network = style_network(config)
        style = load_style(network, config.style.weights)
        load_statistics(config.style.statistics, network.kind).check_network(style)
        params |= _put(style, shardings)
    return {name: params[name] for name in program.trainable}, {name: params[name] for name in program.frozen}


def run_identity(config: Config, frozen: Params) -> RunIdentity:
    """What the checkpoints of a run belong to; all processes must ask for it together."""
    values = {name: parallel.fetch(value) for name, value in frozen.items()}
    return RunIdentity(config, digest(values), {name: digest({name: value}) for name, value in values.items()})


def _put(values: Mapping[str, np.ndarray | jax.Array], shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
    return {name: jax.device_put(value, shardings[name]) for name, value in values.items()}
