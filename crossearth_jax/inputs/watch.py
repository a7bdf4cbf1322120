"""Watch the reader of batches: report a slow one, and end the run if a reader died or does not answer."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from crossearth_jax.config import UserError

WARN_SECONDS = 30.0  # interval of the warnings while `next` waits


class WatchedBatches[T](Iterator[T]):
    """Reads one batch ahead in a thread, so that the time spent waiting can be measured and limited."""

    def __init__(self, batches: Any, what: str, workers: int, timeout: float):
        """Start reading.

        Args:
          batches: a grain iterator; `close` also closes it.
          what: name of the data for messages.
          workers: number of reader processes of the iterator.
          timeout: seconds without a batch after which `next` raises.
        """
        self._waited = 0.0  # seconds that `next` has spent waiting so far
        self._last = (0.0, time.monotonic())
        self._what, self._workers, self._timeout = what, workers, timeout
        self._ready: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(batches,), daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        """Return the next batch.

        Raises:
          UserError: a reader process died, or no batch arrived in time.
        """
        began = time.monotonic()
        batch, error = self._wait(began)
        self._waited += time.monotonic() - began
        if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):  # grain has no own error type
            raise UserError(
                f"a reader process of {self._what} died ({str(error).split('. ')[0]}); if it ran out of memory, lower "
                "data.workers or data.prefetch; the same command continues from the last checkpoint"
            ) from error
        if error is not None:
            raise error
        assert batch is not None
        return batch

    def waited_share(self) -> float:
        """Return the share of the time since the last call (or the start) that `next` spent waiting."""
        now = time.monotonic()
        share = (self._waited - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (self._waited, now)
        return share

    def _wait(self, began: float) -> tuple[T | None, Exception | None]:
        while True:
            left = self._timeout - (time.monotonic() - began)
            try:
                return self._ready.get(timeout=max(min(WARN_SECONDS, left), 0.01))
            except queue.Empty:
                waited = time.monotonic() - began
            if waited >= self._timeout:
                raise UserError(
                    f"no batch of {self._what} for {waited:.0f} s (data.timeout), {self._readers()}; check the disk "
                    "or network that holds the data; the same command continues from the last checkpoint"
                )
            logging.warning("waiting for a batch of %s for %.0f s, %s", self._what, waited, self._readers())

    def _readers(self) -> str:
        if not self._workers:
            return "read in the main process"
        alive = [child for child in multiprocessing.active_children() if child.name.startswith("grain-process")]
        return f"{len(alive)} of {self._workers} reader processes alive"

    def _read(self, batches: Any) -> None:
        while not self._closed.is_set():
            try:
                item = next(batches), None
            except Exception as error:  # raised again in `__next__`
                item = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if item[1] is not None:
                break
        batches.close()

    def close(self) -> None:
        """Stop reading; wait at most five seconds for the reader."""
        self._closed.set()
        self._thread.join(timeout=5)
