"""What becomes of a step whose loss, gradient or update is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from crossearth_jax.config import UserError
from crossearth_jax.runtime import parallel
from crossearth_jax.runtime.atomic import write_npz

POLICIES = ("stop", "skip")
MOST_IN_A_ROW = 20  # skipped steps: a skipped step leaves the parameters alone, so such a fault does not heal


class Guard:
    """Watches for steps that are not finite, one step late so that the device is never idle.

    The step itself has left the parameters alone (`training.step`), the running average included, whether the loss, the
    gradient or the update was not finite; `optax.apply_if_finite` looks at gradients alone. Whoever saves the state
    calls `flush` first, so that no checkpoint holds a step that was not looked at.
    """

    def __init__(self, policy: str, workdir: Path):
        """Starts without a step to look at.

        Raises:
          UserError: the policy is neither "stop" nor "skip".
        """
        if policy not in POLICIES:
            raise UserError(f"train.nonfinite is '{policy}', expected one of {', '.join(POLICIES)}")
        self.skipped = 0  # steps so far
        self._policy, self._workdir = policy, workdir
        self._in_a_row = 0
        self._pending: tuple[int, Mapping[str, jax.Array], jax.Array] | None = None

    def check(self, step: int, batch: Mapping[str, jax.Array], metrics: Mapping[str, jax.Array]) -> None:
        """Looks at the step before this one.

        Args:
          step: 0-based.
          batch: global arrays.
          metrics: of the step, with "nonfinite".

        Raises:
          UserError: see `flush`.
        """
        self.flush()
        self._pending = (step, batch, metrics["nonfinite"])

    def flush(self) -> None:
        """Looks at the last step; all processes of a run do it together.

        Raises:
          UserError: it was not finite and the policy is to stop, or too many have been skipped in a row. Its batch
            is saved.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, batch, nonfinite = pending
        if not jax.device_get(nonfinite):
            self._in_a_row = 0
            return
        # The whole batch: every process takes part, the first one writes.
        arrays: Any = {name: parallel.fetch(value) for name, value in batch.items()}
        path = self._workdir / f"nonfinite_step_{step}.npz"
        if jax.process_index() == 0:
            write_npz(path, step=np.asarray(step, np.int64), **arrays)
        fault = f"the loss, gradient or update of step {step} was not finite"
        look = f"look into it with 'python -m crossearth_jax.replay {path}'"
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._policy == "stop":
            raise UserError(f"{fault} and the run stopped; {look}, or go on without such steps (train.nonfinite=skip)")
        if self._in_a_row == MOST_IN_A_ROW:
            raise UserError(f"{fault}, nor were the {MOST_IN_A_ROW - 1} before it, which were skipped; {look}")
        logging.warning("%s and was skipped (%d so far); %s", fault, self.skipped, look)
