"""Replay a training step that was not finite and report which tensors are not finite.

`python -m crossearth_jax.replay RUN/nonfinite_step_N.npz`

The newest checkpoint before that step is restored, or the run starts again if there is none. The steps in between are
repeated; on the same devices they give the same numbers. Then the step is run with the saved batch. The exit code is 0
if a value is not finite in the replay as well, and 1 if all values are finite.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from crossearth_jax.config import UserError
from crossearth_jax.inputs.loader import train_iterator
from crossearth_jax.runtime import command, parallel
from crossearth_jax.runtime.buckets import AnyPath, any_path
from crossearth_jax.runtime.progress import Progress
from crossearth_jax.training.start import Run, start
from crossearth_jax.training.weights_file import read_run_config


def main(argv: list[str]) -> int:
    """Replay the step that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crossearth_jax.replay", description=__doc__)
    parser.add_argument(
        "batch", type=any_path, metavar="RUN/nonfinite_step_N.npz", help="batch that training has saved"
    )
    path: AnyPath = parser.parse_args(argv).batch
    step, batch = read_batch(path)
    config = read_run_config(path.parent)
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        # Checkpoints that do not contain `step` yet, newest first.
        run, _ = start(config, path.parent, mesh, lambda found: [done for done in found.steps if done <= step])
        run = advance(run, step)
        lines = diagnose(run, {name: jax.device_put(batch[name], parallel.batch_sharding(mesh)) for name in batch})
    print("\n".join([f"step {step}, replayed on {mesh.size} devices", *lines]))
    return 0 if lines else 1


def read_batch(path: AnyPath) -> tuple[int, dict[str, np.ndarray]]:
    """Return the 0-based step and the global batch of a file that training has saved.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            batch = {name: arrays[name] for name in arrays.files}
        return int(batch.pop("step")), batch
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path} ({error}); expected a nonfinite_step_N.npz in a run's folder") from None


def advance(run: Run, step: int) -> Run:
    """Repeat the steps of the run up to `step`."""
    program, state, frozen = run
    first = int(state.step)
    batches = train_iterator(program.config.data, program.config.seed, start_step=first)
    progress = Progress(step, "steps", done=first)
    try:
        for _ in range(first, step):
            state, _ = program.step(state, frozen, parallel.global_batch(next(batches), program.mesh))
            progress.advance()
    finally:
        batches.close()
    logging.info("repeated steps %d to %d", first, step)
    return run._replace(state=state)


def diagnose(run: Run, batch: Mapping[str, jax.Array]) -> list[str]:
    """Run one step and return lines about values that are not finite: parameters, loss terms, gradients, update.

    The result is empty if everything is finite.
    """
    program, state, frozen = run
    gradients, metrics = program.gradients(state, frozen, batch)
    values = {name: float(value) for name, value in metrics.items() if name.startswith("loss")}
    lines = [
        *_lines("parameters", state.trainable | frozen),
        *(f"{name} is {value}" for name, value in values.items() if not np.isfinite(value)),
        *_lines("gradients", gradients),
    ]
    if not lines and bool(metrics["nonfinite"]):
        lines = ["loss and gradients are finite; the norm of the gradient or of the update overflows"]
    if lines:
        lines.append("finite: " + (", ".join(f"{n} {v:.6g}" for n, v in values.items() if np.isfinite(v)) or "no loss"))
    return lines


def _lines(what: str, tensors: Mapping[str, jax.Array]) -> list[str]:
    """Return a heading and a line for every tensor with values that are not finite; [] if there is none."""
    counts: Mapping[str, Any] = jax.device_get(_count(dict(tensors)))
    bad = {name: int(count) for name, count in counts.items() if count}
    if not bad:
        return []
    rows = (f"  {name} {tensors[name].shape}: {count} of {tensors[name].size} values" for name, count in bad.items())
    return [f"{what} not finite in {len(bad)} of {len(tensors)} tensors:", *rows]


@jax.jit
def _count(tensors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.sum(~jnp.isfinite(value)) for name, value in tensors.items()}


if __name__ == "__main__":
    command.run(main)
