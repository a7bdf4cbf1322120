"""Handle requests to stop: Ctrl-C, and the SIGTERM before a pre-emption."""

from __future__ import annotations

import os
import signal
import types
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Raised after training was requested to stop and has saved its state."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step} and saved; run the same command again to continue")
        self.exit_code = 128 + signal_number


class StopSignal:
    """Treat the first SIGINT or SIGTERM as a request to stop; a second one has its usual effect.

    In a run of several processes any of them can receive the signal. JAX's coordination service then determines one
    step at which all of them stop.
    """

    def __init__(self) -> None:
        self.number = 0  # number of the signal; 0: no request
        self._shared = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def reached(self, step: int) -> bool:
        """Return whether to stop after `step` steps; every process must call this once per step."""
        if self._shared and multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return not self._shared and self.number != 0

    def __enter__(self) -> StopSignal:
        # With several processes the coordination service handles SIGTERM, and Ctrl-C is passed on to it.
        for number in (signal.SIGINT,) if self._shared else (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        logging.info("signal %s: finishing this step and saving, then stopping", signal.Signals(number).name)
        self.number = number
        self.__exit__()
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
