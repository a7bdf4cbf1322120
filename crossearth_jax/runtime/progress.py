"""Progress of a long job in the log: how much is done, how fast it goes, how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from absl import logging


class Progress:
    """Counts finished units and logs a line at most every few seconds.

    ```
    progress = Progress(len(batches), "batches", images_per_unit=8)
    for batch in batches:
        ...
        progress.advance()
    ```

    Speed is that of the time since the previous line, so one slow start (compilation) does not spoil the
    estimate for the rest of the job. The last line, logged when the total is reached, gives the average.
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
        """Starts the clock.

        Args:
          total: units in the whole job; None if unknown, then no time left is given.
          unit: what is counted, in the plural ("steps", "tiles").
          every_seconds: least time between two lines.
          done: units finished by an earlier, interrupted run; they count as done but not as speed.
          images_per_unit: makes the speed images/s instead of units/s.
          clock: seconds from any origin; tests pass their own.
        """
        self._total, self._unit, self._every = total, unit, every_seconds
        self._scale, self._rate_unit = (1, unit) if images_per_unit is None else (images_per_unit, "images")
        self._clock = clock
        self._done = self._first = self._last_done = done
        self._start = self._last_time = clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units; logs a line, ending in `note`, if one is due."""
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
