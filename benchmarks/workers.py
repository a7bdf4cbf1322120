"""Two programs measured in turn: each is a process that does a piece of work whenever it is told to.

A worker reads one name of a task per line from its input and answers with one line of JSON. Workers are started one
after the other, and only one of them ever works, so both see the same machine; the order within a round alternates.
What is compared is the median of the rounds' ratios: a machine that slows down for a while slows both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Worker:
    """A running worker process; `start` makes one."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]  # what it said when it was ready

    def run(self, task: str) -> dict[str, float]:
        """Does a task once: seconds of the wall clock and of all its processors together."""
        assert self.process.stdin
        print(task, file=self.process.stdin, flush=True)
        return _answer(self.process)

    def close(self) -> dict[str, float]:
        """Ends the process; returns its peak memory while it worked."""
        with self.process:  # waits, and closes the pipes
            return self.run("end")


def start(command: Sequence[str]) -> Worker:
    """Starts a worker and waits until it has loaded and warmed up."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Worker(process, _answer(process))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"the worker ended with exit code {process.wait()}: {process.args}")


def jax_command(*arguments: str) -> list[str]:
    """A worker of ours, in this interpreter."""
    return [sys.executable, "-m", "benchmarks.jax_worker", *arguments]


def torch_command(python: str, *arguments: str, module: str = "worker") -> list[str]:
    """A program of PyTorch's side, in the interpreter that has it."""
    return [python, "-m", f"benchmarks.torch_reference.{module}", *arguments]


def rounds(workers: Sequence[Worker], tasks: Sequence[str], count: int) -> list[list[dict[str, dict[str, float]]]]:
    """Every worker does every task in every round: [worker][round][task]."""
    found: list[list[dict[str, dict[str, float]]]] = [[] for _ in workers]
    for number in range(count):
        for task in tasks:
            order = list(enumerate(workers))
            for i, worker in order if number % 2 == 0 else order[::-1]:
                if len(found[i]) == number:
                    found[i].append({})
                found[i][number][task] = worker.run(task)
        print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(results: Sequence[Mapping[str, Mapping[str, float]]], task: str, kind: str = "seconds") -> list[float]:
    """One worker's seconds for a task, round by round."""
    return [result[task][kind] for result in results]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of ours divided by theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


# --- inside a worker -------------------------------------------------------------------------------------


def serve(tasks: Mapping[str, Callable[[], Any]], facts: Mapping[str, Any]) -> None:
    """Warms every task up, says so, and does what is asked for until the end."""
    for task in tasks.values():
        task()
    started_at = peak_bytes()
    _forget_peak()
    print(json.dumps({**facts, "peak_bytes_until_ready": started_at, "bytes_when_ready": peak_bytes()}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name == "end":
            print(json.dumps({"peak_bytes": peak_bytes()}), flush=True)
            return
        print(json.dumps(timed(tasks[name])), flush=True)


def timed(task: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the wall clock, and of all processors of this process together."""
    processor, wall = time.process_time(), time.perf_counter()
    task()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def peak_bytes() -> int:
    """Highest memory of this process since its start or `_forget_peak`."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except OSError:  # not Linux: the peak of the whole life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Starts counting the peak anew, so that loading and compiling are not in it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def use_threads(count: int) -> None:
    """Keeps this process to so many processors; libraries size their pools accordingly."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
