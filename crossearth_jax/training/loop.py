"""The training loop.

`python -m crossearth_jax.main --config=… --workdir=… --mode=train`
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from crossearth_jax.config import Config, UserError
from crossearth_jax.inputs.loader import Batch, train_iterator
from crossearth_jax.inputs.watch import WatchedBatches
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_json
from crossearth_jax.runtime.buckets import AnyPath, local_path
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.training.checkpoint import Checkpoints, check_folder
from crossearth_jax.training.guard import Guard
from crossearth_jax.training.measure import measured
from crossearth_jax.training.start import Run, start
from crossearth_jax.training.state import Params, TrainState
from crossearth_jax.training.stop import Stopped, StopSignal
from crossearth_jax.training.weights_file import export_model
from crossearth_jax.training.writer import MetricsWriter
from crossearth_jax.weights.native import MODEL_FILE

COUNTED = ("nonfinite", "replaced_records")  # metrics that are summed instead of averaged
SHOWN = ("loss", "validation/miou")  # metrics in the lines of progress

PROFILE_FOLDER = "profile"
UNTRACED = 3  # first steps of a start, which include the compilation

Validation = Callable[[Config, Params], float]  # (config, all parameters) -> score on the source, larger is better


def train(config: Config, workdir: AnyPath, validation: Validation | None = None, traced_steps: int = 0) -> Run:
    """Train up to step `config.train.steps`, continuing from the newest checkpoint of `workdir` if there is one.

    Besides checkpoints it writes `model.safetensors`, the only file that inference needs.

    Args:
      config: the experiment.
      workdir: the run's folder.
      validation: scores the parameters; needed for `evaluate.select = "best_on_source"`.
      traced_steps: number of steps that `jax.profiler` traces, after the first `UNTRACED` steps of this start.

    Raises:
      UserError: the input, the configuration or the run directory is wrong, or a step was not finite.
      Stopped: a signal requested the stop; the state is saved.
    """
    check_folder(workdir)
    profile = workdir / PROFILE_FOLDER
    if traced_steps:
        local_path(profile, "profile folder", "train with a local --workdir to trace steps")
    config = measured(config)
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, checkpoints = start(config, workdir, mesh)
        first = jax.process_index() == 0
        # Written only after the checkpoint was accepted, so that a refused run does not overwrite the configuration.
        if first:
            write_json(workdir / "config.json", checkpoints.identity["config"])
        done = int(run.state.step)
        checkpoints.set_aside(done)
        batches = train_iterator(config.data, config.seed, *parallel.input_shard(mesh), start_step=done)
        validator = None
        if config.evaluate.select != "last":
            if validation is None:
                raise UserError("evaluate.select=best_on_source needs a validation; train with crossearth_jax.main")
            every = config.evaluate.every or config.train.checkpoint_every
            validator = Validator(every, functools.partial(validation, config))
        try:
            with MetricsWriter(
                workdir,
                done,
                images_per_step=config.data.batch_size,
                active=first,
                dashboards=config.train.dashboards,
                config=checkpoints.identity["config"],
            ) as writer:
                guard = Guard(config.train.nonfinite, workdir)
                with contextlib.closing(Trace(profile, traced_steps if first else 0)) as trace:
                    state = _loop(run, workdir, batches, checkpoints, writer, guard, validator, trace)
        finally:
            batches.close()
            checkpoints.close()
    return run._replace(state=state)


class Validator(NamedTuple):
    """When and how the source is scored during training."""

    every: int  # steps
    score: Callable[[Params], float]

    def due(self, done: int, last: bool) -> bool:
        """Return whether to score after `done` steps."""
        return last or done % self.every == 0


def _loop(
    run: Run,
    workdir: AnyPath,
    batches: WatchedBatches[Batch],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    guard: Guard,
    validator: Validator | None,
    trace: Trace,
) -> TrainState:
    program, state, frozen = run
    config = program.config.train
    start = int(state.step)
    progress = Progress(config.steps, "steps", done=start, images_per_unit=program.config.data.batch_size)
    averages, shown = Averages(), dict[str, float]()
    # Only explicit transfers between host and devices (`jax.device_put`, `jax.device_get`) are allowed. An implicit one
    # would make every step wait without a warning.
    with StopSignal() as stop, jax.transfer_guard("disallow"):
        for step in range(start, config.steps):
            batch = parallel.global_batch(next(batches), program.mesh)
            trace.advance(state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = program.step(state, frozen, batch)
            guard.check(step, batch, metrics)
            averages.add({**metrics, "replaced_records": batch["replaced"]})
            done = step + 1
            last = done == config.steps
            stopping = stop.reached(done) and not last
            values: dict[str, float] = {}
            if done % config.log_every == 0 or last:
                values = averages.pop() | {"input_wait": batches.waited_share()}
            score = None
            if validator is not None and validator.due(done, last):
                score = validator.score(state.evaluated | frozen)
                values["validation/miou"] = score
            if values:
                writer.write(done, values)
            shown |= {name: values[name] for name in SHOWN if name in values}  # few lines fall on a logged step
            progress.advance(note=", ".join(f"{name} {value:.3f}" for name, value in shown.items()))
            if done % config.checkpoint_every == 0 or last or stopping or score is not None:
                guard.flush()
                # The file for inference is written first: if the process is killed in between, this file is newer than
                # the last checkpoint, never older. The resumed run reaches the same step again.
                if validator is None or (score is not None and checkpoints.improves(score)):
                    try:
                        export_model(workdir, program.config, state.evaluated | frozen, done)
                    except UserError as error:
                        raise checkpoints.write_error(MODEL_FILE, error) from None
                checkpoints.save(state, score)
            if stopping:
                checkpoints.wait()
                raise Stopped(done, stop.number)
    skipped, replaced = (averages.totals[name] for name in COUNTED)
    if skipped or replaced:
        logging.warning(
            "%d steps were skipped and %d corrupt records were replaced since this start", skipped, replaced
        )
    return state


class Trace:
    """A trace of some training steps by `jax.profiler`, for TensorBoard's profile plugin, XProf or Perfetto."""

    def __init__(self, folder: AnyPath, steps: int):
        """Trace `steps` steps into the folder; none if `steps` is 0."""
        self._folder = folder
        self._steps = steps
        self._seen = 0  # steps that were started
        self._running = False

    def advance(self, state: TrainState) -> None:
        """Start or stop the trace; to be called before every step with the state that it continues from."""
        if self._seen == UNTRACED and self._steps:
            jax.block_until_ready(state)
            # Without the calls of Python functions: following them in all threads can crash Python when a thread ends.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True
        elif self._running and self._seen == UNTRACED + self._steps:
            jax.block_until_ready(state)  # steps run asynchronously
            self.close()
        self._seen += 1

    def close(self) -> None:
        """Stop the trace if it is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logging.info("trace of training steps: %s", self._folder)


class Averages:
    """Means (or sums) of the metrics since the last log line, summed on device: no step waits for the host."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys(COUNTED, 0)
        self._sums: Any = None
        self._count = 0
        self._total = jax.jit(lambda metrics: jax.tree.map(jnp.sum, metrics))
        self._add = jax.jit(lambda sums, metrics: jax.tree.map(lambda a, b: a + jnp.sum(b), sums, metrics))

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Add one step's metrics."""
        self._sums = self._total(dict(metrics)) if self._sums is None else self._add(self._sums, dict(metrics))
        self._count += 1

    def pop(self) -> dict[str, float]:
        """Return the means and sums, and reset them."""
        sums = jax.device_get(self._sums)
        self.totals = {name: total + int(sums[name]) for name, total in self.totals.items()}
        values = {name: float(value) / (1 if name in COUNTED else self._count) for name, value in sums.items()}
        self._sums, self._count = None, 0
        return values
