"""Requests to stop: Ctrl-C, and the SIGTERM that precedes a pre-emption."""

from __future__ import annotations

import os
import signal
import types
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Training was asked to stop and has saved its state."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped at step {step} and saved; the same command continues from there")
        self.exit_code = 128 + signal_number


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request; the second acts as usual.

    In a run of several processes the signal may reach any of them, at any step; JAX's coordination service then
    agrees on one step at which all of them stop.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 while nobody has asked
        self._shared = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` steps; every process asks once a step."""
        if self._shared and multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return not self._shared and self.number != 0

    def __enter__(self) -> StopSignal:
        # With several processes SIGTERM belongs to the coordination service, and Ctrl-C is passed on to it.
        for number in (signal.SIGINT,) if self._shared else (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        logging.info("signal %s: finishing this step, saving, then stopping", signal.Signals(number).name)
        self.number = number
        self.__exit__()
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
