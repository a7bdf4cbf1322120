"""Training, told from top to bottom.

`python -m crossearth_jax.main --config=… --workdir=… --mode=train`
"""

from __future__ import annotations

import signal
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from crossearth_jax import parallel
from crossearth_jax.atomic import write_json
from crossearth_jax.config import Config, UserError
from crossearth_jax.initialise import initial_params, style_parts
from crossearth_jax.inputs.pipeline import train_iterator
from crossearth_jax.progress import Progress
from crossearth_jax.training.checkpoint import Checkpoints, RunIdentity
from crossearth_jax.training.program import Program, build_program
from crossearth_jax.training.state import Params, TrainState
from crossearth_jax.training.writer import MetricsWriter
from crossearth_jax.weights.native import digest


class Run(NamedTuple):
    """A run in memory."""

    program: Program
    state: TrainState
    frozen: Params

    @property
    def params(self) -> Params:
        """All parameters as evaluation uses them, those of the style network (`style/…`) included."""
        return self.state.evaluated | self.frozen


def train(config: Config, workdir: Path) -> Run:
    """Trains to `config.train.steps`, continuing from the newest checkpoint of `workdir` if there is one.

    Raises:
      UserError: the input, the configuration or the run directory is wrong, or a step was not finite.
      Stopped: a signal asked to stop; the state is saved.
    """
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        iterator = train_iterator(config.data, config.seed, jax.process_index(), jax.process_count())
        run, checkpoints = _start(config, workdir, mesh, iterator)
        # Not before the checkpoint is known to be this run's: a refused run must not leave its configuration here.
        write_json(workdir / "config.json", checkpoints.identity["config"])
        start = int(run.state.step)
        images = config.data.batch_size
        with MetricsWriter(workdir, start, images_per_step=images, active=jax.process_index() == 0) as writer:
            state = _loop(run, iterator, checkpoints, writer, workdir)
        checkpoints.close()
    return run._replace(state=state)


def restore(config: Config, workdir: Path) -> Run:
    """Reads the newest checkpoint of `workdir`.

    Raises:
      UserError: there is none, or it belongs to another configuration.
    """
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, checkpoints = _start(config, workdir, mesh, None)
        if checkpoints.latest is None:
            raise UserError(f"{workdir} holds no checkpoint; train first (--mode=train), or name the run's own folder")
        checkpoints.close()
    return run


def _start(
    config: Config, workdir: Path, mesh: Mesh, iterator: grain.DatasetIterator | None
) -> tuple[Run, Checkpoints]:
    """Builds the program and its first state: fresh, or from the newest checkpoint together with the iterator."""
    program = build_program(config, mesh, *style_parts(config, parallel.batch_shards(mesh)))
    trainable, frozen = initial_params(program)
    identity = RunIdentity(config, digest(frozen))
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints, identity)
    if checkpoints.latest is None:
        state = program.create_state(trainable)
    else:
        state = checkpoints.restore(program.state, program.state_shardings, iterator)
    return Run(program, state, frozen), checkpoints


def _loop(
    run: Run, iterator: grain.DatasetIterator, checkpoints: Checkpoints, writer: MetricsWriter, workdir: Path
) -> TrainState:
    program, state, frozen = run
    config = program.config.train
    start = int(state.step)
    progress = Progress(config.steps, "steps", done=start, images_per_unit=program.config.data.batch_size)
    averages, guard, stop = Averages(), Guard(config.nonfinite, workdir), StopSignal()
    with stop:
        for step in range(start, config.steps):
            host_batch = next(iterator)
            batch = parallel.global_batch(host_batch, program.mesh)
            state, metrics = program.step(state, frozen, batch)
            guard.check(step, host_batch, metrics)
            averages.add(metrics)
            done = step + 1
            last = done == config.steps
            note = ""
            if done % config.log_every == 0 or last:
                values = averages.pop()
                writer.write(done, values)
                note = f"loss {values['loss']:.3f}"
            progress.advance(note=note)
            if done % config.checkpoint_every == 0 or last or stop.requested:
                checkpoints.save(state, iterator)
            if stop.requested and not last:
                checkpoints.close()
                raise Stopped(done, stop.requested)
    guard.flush()
    return state


class Stopped(Exception):
    """Training was asked to stop and has saved its state."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step} and saved; the same command continues from there")
        self.exit_code = 128 + signal_number


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request; the second acts as usual."""

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        logging.info("signal %s: finishing this step, saving, then stopping", signal.Signals(number).name)
        self.requested = number
        self.__exit__()


class Averages:
    """Means of the metrics since the last log line, summed on device so that no step waits for the host."""

    def __init__(self) -> None:
        self._sums: Any = None
        self._count = 0
        self._add = jax.jit(lambda sums, metrics: jax.tree.map(jnp.add, sums, metrics))

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds one step's metrics."""
        self._sums = dict(metrics) if self._sums is None else self._add(self._sums, dict(metrics))
        self._count += 1

    def pop(self) -> dict[str, float]:
        """Fetches the means and starts over."""
        means = {name: float(value) / self._count for name, value in jax.device_get(self._sums).items()}
        self._sums, self._count = None, 0
        return means


class Guard:
    """Watches for steps that are not finite, one step late so that the device is never idle.

    The step itself has left the parameters alone (`training.step`).
    """

    def __init__(self, policy: str, workdir: Path):
        self._policy, self._workdir = policy, workdir
        self._pending: tuple[int, Mapping[str, np.ndarray], jax.Array] | None = None

    def check(self, step: int, batch: Mapping[str, np.ndarray], metrics: Mapping[str, jax.Array]) -> None:
        """Looks at the step before this one."""
        self.flush()
        self._pending = (step, batch, metrics["nonfinite"])

    def flush(self) -> None:
        """Looks at the last step.

        Raises:
          UserError: it was not finite and the policy is to stop; its batch is saved.
        """
        if self._pending is None or not bool(self._pending[2]):
            return
        step, batch, _ = self._pending
        self._pending = None
        path = self._workdir / f"nonfinite_step_{step}.npz"
        np.savez(path, **dict(batch))  # pyright: ignore[reportArgumentType]
        if self._policy == "skip":
            logging.warning("step %d was not finite and was skipped; its batch is in %s", step, path)
            return
        raise UserError(
            f"the loss or gradient of step {step} was not finite; its batch is in {path}, the parameters before it "
            "are those of the last checkpoint, from which the same command replays the same steps"
        )
