"""A run in memory, with initial parameters or restored from one of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from crossearth_jax.config import Config, UserError
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.buckets import AnyPath
from crossearth_jax.training.checkpoint import SELECTIONS, Checkpoints, check_folder
from crossearth_jax.training.initialise import initial_params, run_identity, with_minor_components
from crossearth_jax.training.program import Program, build_program
from crossearth_jax.training.state import Params, TrainState


class Run(NamedTuple):
    """The program, state and frozen parameters of a run."""

    program: Program
    state: TrainState
    frozen: Params

    @property
    def params(self) -> Params:
        """All parameters as evaluation uses them, those of the style network (`style/…`) included."""
        return self.state.evaluated | self.frozen


def restore(config: Config, workdir: AnyPath, mesh: Mesh | None = None) -> Run:
    """Restore the checkpoint of `workdir` that `evaluate.select` names, or the next one if it is damaged.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      mesh: mesh of the parameters; None: that of the configuration.

    Raises:
      UserError: there is no checkpoint, or it belongs to another configuration.
    """
    check_folder(workdir)
    mesh = mesh or parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, _ = start(config, workdir, mesh, lambda found: found.ranked(config.evaluate.select))
    return run


def start(
    config: Config,
    workdir: AnyPath,
    mesh: Mesh,
    choose: Callable[[Checkpoints], Sequence[int]] = lambda checkpoints: checkpoints.steps,
) -> tuple[Run, Checkpoints]:
    """Build the program and a state of the run; return them with the run's checkpoints.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      mesh: mesh of the parameters.
      choose: returns the steps of the checkpoints to restore, in order of preference; [] for the initial state.

    Raises:
      UserError: the configuration, a weights file or the checkpoints cannot be used.
    """
    if config.evaluate.select not in SELECTIONS:
        raise UserError(f"evaluate.select is '{config.evaluate.select}', expected one of {', '.join(SELECTIONS)}")
    program = build_program(config, mesh)
    trainable, frozen = initial_params(program)
    identity = run_identity(config, frozen)
    trainable, frozen = with_minor_components(program, trainable, frozen)
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, identity)
    if steps := choose(checkpoints):
        state = checkpoints.restore(program.state, program.state_shardings, steps)
    else:
        state = program.create_state(trainable)
    return Run(program, state, frozen), checkpoints
