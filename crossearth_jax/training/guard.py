"""Handle steps whose loss, gradient or update is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax.config import UserError
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_npz
from crossearth_jax.runtime.buckets import AnyPath

POLICIES = ("stop", "skip")
# Consecutive skipped steps after which the run stops: a skipped step does not change the parameters, so parameters that
# cause the fault stay.
MOST_IN_A_ROW = 20


class Guard:
    """Check steps for values that are not finite, one step late, so that the device never waits for the host.

    The step itself keeps the old parameters, optimizer state and moving average if the loss, the gradient or the update
    is not finite (`training.step`); `optax.apply_if_finite` checks only the gradients. `flush` must be called before
    the state is saved, so that no checkpoint contains an unchecked step.
    """

    def __init__(self, policy: str, workdir: AnyPath):
        """Start without a step to check.

        Args:
          policy: "stop" or "skip".
          workdir: the run's folder, for the saved batches.

        Raises:
          UserError: the policy is neither "stop" nor "skip".
        """
        if policy not in POLICIES:
            raise UserError(f"train.nonfinite is '{policy}', expected one of {', '.join(POLICIES)}")
        self.skipped = 0  # number of skipped steps so far
        self._policy, self._workdir = policy, workdir
        self._in_a_row = 0
        self._pending: tuple[int, Mapping[str, jax.Array], jax.Array] | None = None

    def check(self, step: int, batch: Mapping[str, jax.Array], metrics: Mapping[str, jax.Array]) -> None:
        """Check the previous step and keep this one for the next call.

        Args:
          step: 0-based.
          batch: global arrays.
          metrics: metrics of the step, with "nonfinite".

        Raises:
          UserError: see `flush`.
        """
        self.flush()
        self._pending = (step, batch, metrics["nonfinite"])

    def flush(self) -> None:
        """Check the last step; all processes of a run must call this together.

        The batch of a step that was not finite is saved to `nonfinite_step_N.npz`.

        Raises:
          UserError: the step was not finite and the policy is "stop", or too many consecutive steps were skipped.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, batch, nonfinite = pending
        if not jax.device_get(nonfinite):
            self._in_a_row = 0
            return
        # The whole batch: all processes take part, process 0 writes.
        arrays: Any = {name: parallel.fetch(value) for name, value in batch.items()}
        path = self._workdir / f"nonfinite_step_{step}.npz"
        if jax.process_index() == 0:
            write_npz(path, step=np.asarray(step, np.int64), **arrays)
        fault = f"the loss, gradient or update of step {step} was not finite"
        look = f"find the cause with 'python -m crossearth_jax.replay {path}'"
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._policy == "stop":
            raise UserError(f"{fault} and the run stopped; {look}, or skip such steps (train.nonfinite=skip)")
        if self._in_a_row == MOST_IN_A_ROW:
            raise UserError(
                f"{fault}, and the {MOST_IN_A_ROW - 1} steps before it were skipped for the same reason; {look}"
            )
        logging.warning("%s and was skipped (%d so far); %s", fault, self.skipped, look)
