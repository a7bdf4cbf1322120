"""Two worker processes: order of results, errors, and workers that exit when the parent is killed."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from crossearth_data.labels import Numbers  # pyright: ignore[reportMissingImports]
from crossearth_data.pool import cores, ordered_map  # pyright: ignore[reportMissingImports]

from crossearth_jax.config import UserError

SLEEPER = """
import multiprocessing, time
from crossearth_data.pool import ordered_map

if __name__ == "__main__":
    for _ in ordered_map(time.sleep, [0, *[60] * 9], 2):
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
"""


def test_order_is_kept_and_errors_arrive():
    convert = functools.partial(Numbers({1: 0, 2: 1}).train_ids, name="x.png")
    labels = [np.full((1, 1), value, np.uint8) for value in (1, 2, 2, 1, 2, 1, 1, 1, 2, 3, 1)]
    found = ordered_map(convert, labels, 2)
    assert [int(next(found).ids[0, 0]) for _ in range(9)] == [0, 1, 1, 0, 1, 0, 0, 0, 1]
    with pytest.raises(UserError, match=r"^x\.png has the unknown label values 3"):
        next(found)


def test_cores_without_affinity(monkeypatch):
    """macOS has no CPU affinity."""
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()


def test_a_killed_worker_is_explained():
    with pytest.raises(UserError, match="a worker process was killed, probably for lack of memory"):
        list(ordered_map(os._exit, [1] * 4, 2))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = list(map(int, parent.stdout.readline().split()))
    assert len(workers) == 2 and all(map(running, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    end = time.monotonic() + 30
    while any(map(running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(running, workers))
