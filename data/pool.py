"""Process items in several processes and return the results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import process
from multiprocessing import connection

from crossearth_jax.config import UserError

WORTH_PROCESSES = 64_000_000  # bytes of input below which starting processes takes longer than the work


def cores() -> int:
    """Return the number of cores that this process may use (all cores on macOS, which has no CPU affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map[T, R](function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Yield the results of `map(function, items)`, computed by `workers` processes.

    At most three results per worker are computed ahead of the consumer. The processes are spawned: `function` and the
    items are pickled, and the calling script needs `if __name__ == "__main__"`. With one worker, everything runs in
    this process.

    Raises:
      UserError: a worker was killed.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        waiting = collections.deque[concurrent.futures.Future[R]]()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except process.BrokenProcessPool:
            raise UserError(
                "a worker process was killed, probably for lack of memory; there is one worker per core: start again"
                " with fewer cores (on Linux: taskset --cpu-list 0 python -m …)"
            ) from None
        finally:
            for future in waiting:
                future.cancel()


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent dies instead of waiting for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
