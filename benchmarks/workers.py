"""Compare two programs by running their tasks alternately in two worker processes.

A worker reads the name of a task per line from its standard input and answers with one line of JSON. Only one worker
runs at a time, so that both have the machine to themselves; the order alternates between rounds. The result is the
median of the ratios of the rounds, so a temporary slowdown of the machine affects both.
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
    """A running worker process, created by `start`."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]  # sent by the worker when it is ready

    def run(self, task: str) -> dict[str, float]:
        """Run a task once; return its wall time and processor time (all threads) in seconds."""
        assert self.process.stdin
        print(task, file=self.process.stdin, flush=True)
        return _answer(self.process)

    def close(self) -> dict[str, float]:
        """End the process; return its peak memory during the tasks."""
        with self.process:  # waits, and closes the pipes
            return self.run("end")


def start(command: Sequence[str]) -> Worker:
    """Start a worker and wait until it has loaded and warmed up."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Worker(process, _answer(process))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"the worker ended with exit code {process.wait()}: {process.args}")


def jax_command(*arguments: str) -> list[str]:
    """Return the command of this package's worker, in this interpreter."""
    return [sys.executable, "-m", "benchmarks.jax_worker", *arguments]


def torch_command(python: str, *arguments: str, module: str = "worker") -> list[str]:
    """Return the command of a PyTorch program, in the interpreter that has PyTorch."""
    return [python, "-m", f"benchmarks.torch_reference.{module}", *arguments]


def rounds(workers: Sequence[Worker], tasks: Sequence[str], count: int) -> list[list[dict[str, dict[str, float]]]]:
    """Run every task in every worker, `count` times; return the times by [worker][round][task]."""
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
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds(results: Sequence[Mapping[str, Mapping[str, float]]], task: str, kind: str = "seconds") -> list[float]:
    """Return the seconds of one worker for a task, one per round."""
    return [result[task][kind] for result in results]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum over rounds of `ours` divided by `theirs`."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


# --- inside a worker -------------------------------------------------------------------------------------


def serve(tasks: Mapping[str, Callable[[], Any]], facts: Mapping[str, Any]) -> None:
    """Warm up every task, print the facts, and run requested tasks until "end"."""
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
    """Run a task; return its wall time and the processor time of this process (all threads) in seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    task()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def peak_bytes() -> int:
    """Return the peak resident memory of this process since its start or `_forget_peak`."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except OSError:  # not Linux: the peak since the start of the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Reset the peak memory, so that it does not include loading and compiling."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def use_threads(count: int) -> None:
    """Restrict this process to `count` processors; libraries choose the sizes of their thread pools accordingly."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
