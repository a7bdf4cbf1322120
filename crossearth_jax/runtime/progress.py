"""Log the progress of a long job: share done, speed and remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from absl import logging


class Progress:
    """Count finished units and log a line at most every few seconds.

    ```
    progress = Progress(len(batches), "batches", images_per_unit=8)
    for batch in batches:
        ...
        progress.advance()
    ```

    The speed is measured since the previous line, so that a slow start (compilation) does not distort the estimate of
    the remaining time. The last line, logged when the total is reached, gives the average speed.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        every_seconds: float = 10.0,
        *,
        done: int = 0,
        images_per_unit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the clock.

        Args:
          total: units of the whole job; None if unknown, then no remaining time is shown.
          unit: name of the units in the plural ("steps", "tiles").
          every_seconds: shortest time between two lines.
          done: units finished by an earlier, interrupted run; they are not part of the speed.
          images_per_unit: if given, the speed is in images/s instead of units/s.
          clock: function that returns seconds from any origin; tests pass their own.
        """
        self._total, self._unit, self._every = total, unit, every_seconds
        self._scale, self._rate_unit = (1, unit) if images_per_unit is None else (images_per_unit, "images")
        self._clock = clock
        self._done = self._first = self._last_done = done
        self._start = self._last_time = clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; log a line that ends in `note` if one is due."""
        self._done += count
        now = self._clock()
        finished = self._total is not None and self._done >= self._total
        if finished:
            logging.info("%s", self._line(self._done - self._first, now - self._start, note))
        elif now - self._last_time >= self._every:
            logging.info("%s", self._line(self._done - self._last_done, now - self._last_time, note))
        else:
            return
        self._last_time, self._last_done = now, self._done

    def _line(self, units: int, seconds: float, note: str) -> str:
        rate = units / max(seconds, 1e-9)
        shown = rate * self._scale
        speed = f"{shown:.0f} {self._rate_unit}/s" if shown >= 100 else f"{shown:.3g} {self._rate_unit}/s"
        if self._total is None:
            parts = [f"{self._done} {self._unit}", speed]
        elif self._done < self._total:
            share = f"{self._done}/{self._total} {self._unit} ({self._done / self._total:.0%})"
            left = f"{_duration((self._total - self._done) / rate)} left" if rate else "time left unknown"
            parts = [share, speed, left]
        else:
            parts = [f"{self._done}/{self._total} {self._unit} in {_duration(seconds)}", speed]
        return ", ".join([*parts, note] if note else parts)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
