"""Initial parameters of a run: random values, replaced by those of weights files, and the frozen style network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax.benchmark.registry import source_domains
from crossearth_jax.config import Config
from crossearth_jax.models.lora import minor_components
from crossearth_jax.runtime import parallel
from crossearth_jax.training.checkpoint import RunIdentity
from crossearth_jax.training.program import Program
from crossearth_jax.training.state import Params
from crossearth_jax.training.styles import style_network
from crossearth_jax.weights.native import digest
from crossearth_jax.weights.starting import starting_weights
from crossearth_jax.weights.style_files import load_style
from crossearth_jax.weights.style_statistics import load_statistics


def initial_params(program: Program) -> tuple[Params, Params]:
    """Return (trainable, frozen), sharded; they depend only on the config's seed and files.

    Raises:
      UserError: a weights file is missing, damaged or does not fit the model.
    """
    config, model = program.config, program.model
    shardings: Any = program.state_shardings.trainable | program.frozen_shardings
    drawn = {name: shardings[name] for name in model.shapes()}
    params = jax.jit(model.init, out_shardings=drawn)(jax.random.key(config.seed))
    if config.train.init_from is not None:
        classes = source_domains(config.data.source, config.data.data_dir)[0].classes
        params |= _put(starting_weights(config.train.init_from, config.model, classes), shardings)
    elif any(not name.startswith("style/") for name in program.frozen):
        logging.warning("the frozen parameters have random values, because train.init_from names no weights file")
    if config.style is not None:
        network = style_network(config)
        style = load_style(network, config.style.weights)
        load_statistics(config.style.statistics, network.kind).check_network(style)
        params |= _put(style, shardings)
    return {name: params[name] for name in program.trainable}, {name: params[name] for name in program.frozen}


def with_minor_components(program: Program, trainable: Params, frozen: Params) -> tuple[Params, Params]:
    """Return (trainable, frozen) of a run; the adapter "soma" takes its initial values from the backbone's kernels.

    These are split on the host at every start of a run, also when it is resumed, unless a weights file gave factors
    already. The digests of `run_identity` are those of the kernels before, so that the rounding of the decomposition,
    which may differ between machines, does not prevent a resumption.
    """
    config = program.config.model
    if config.adapter != "soma" or parallel.fetch(trainable["adapter/layers/proj/down"]).any():
        return trainable, frozen
    logging.info("model.adapter=soma: decomposing the kernels of the backbone")
    params = trainable | frozen
    kernels = {name: parallel.fetch(x) for name, x in params.items() if name.startswith("backbone/blocks/")}
    shardings: Any = program.state_shardings.trainable | program.frozen_shardings
    params |= _put(minor_components(config, kernels), shardings)
    return {name: params[name] for name in trainable}, {name: params[name] for name in frozen}


def run_identity(config: Config, frozen: Params) -> RunIdentity:
    """Return what the checkpoints of a run belong to; all processes must call this together."""
    values = {name: parallel.fetch(value) for name, value in frozen.items()}
    return RunIdentity(config, digest(values), {name: digest({name: value}) for name, value in values.items()})


def _put(values: Mapping[str, np.ndarray | jax.Array], shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
    return {name: jax.device_put(value, shardings[name]) for name, value in values.items()}
