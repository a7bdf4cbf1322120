"""What every stage of the run shares: its arguments, its records, and how it times a call.

Needs the standard library alone: the runner uses it before anything is installed, and so does PyTorch's side, in an
environment of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

PRECISIONS = ("bfloat16", "tf32", "float32")
ROUNDS = 5


class Records:
    """What a stage has measured: one JSON line each, on disk as soon as it is known.

    A stage that is cut off leaves what it had, and passes over it when it is started again.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            text = path.read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]  # without a line that was cut off
            path.write_text(whole, "utf-8")
            self.found = {record["name"]: record for record in map(json.loads, whole.splitlines())}

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, **values: Any) -> None:
        """Keeps a record, on disk and in the log."""
        self.found[name] = {"name": name, **values}
        line = json.dumps(self.found[name])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program that is measured."""

    task: str  # "forward", "predict", "step", "both" or "styled"
    side: int  # of the image, pixels
    batch: int | None  # images; None is the most that the memory holds
    precision: str  # one of PRECISIONS
    variant: str  # "ours", or how PyTorch runs it

    @property
    def name(self) -> str:
        """Identifies the case among the records."""
        return f"{self.task}/{self.side}px/{self.batch or 'largest'}/{self.precision}/{self.variant}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    batches: tuple[int | None, ...]  # images, in order of worth; None is as many as fit
    most: int  # images: the search for the largest batch ends here
    scene: int  # side of the scene for sliding windows, pixels
    points: int  # of the set loss
    seconds: float = 1.0  # that a case is timed
    precisions: tuple[str, ...] = PRECISIONS

    @property
    def some(self) -> int:
        """Images of the most important cases."""
        assert self.batches[0]
        return self.batches[0]


PLANS = {
    "vit_l": Plan((8, 1, None), 64, 4096, 12544),
    "tiny": Plan((2,), 4, 160, 98, 0.05, ("bfloat16",)),
}


def cases(task: str, side: int, plan: Plan, variants: Sequence[str]) -> list[Case]:
    """The cases of a task, in order of worth: by batch, then by variant, then by precision.

    Only the first two variants are measured at more than the first batch, and only step and forward at all batches.
    """
    if task == "predict":
        side = plan.scene
    batches = plan.batches if task in ("forward", "step") else plan.batches[:1]
    return [
        Case(task, side, batch, precision, variant)
        for batch in batches
        for variant in (variants if batch == plan.batches[0] else variants[:2])
        for precision in plan.precisions
    ]


def largest_batch(known: dict[int, float], limit: float, most: int) -> int:
    """How many images fit, from the bytes that two other batches take; the memory grows in proportion to the batch.

    Args:
      known: bytes by batch, of two batches.
      limit: bytes that there are.
      most: the answer is this at most, and at least the larger of the known batches.
    """
    (few, least), (some, more) = sorted(known.items())
    by_image = max((more - least) / (some - few), 1.0)
    fitting = int(some + (limit - more) / by_image)
    return max(min(fitting - fitting % some, most), some)


def measure(start: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict[str, float]:
    """Seconds of one call: median, least and most of several rounds of calls in a row.

    Args:
      start: begins the work, which may go on after it returns.
      wait: returns when that work, and what was begun before it, is done.
      seconds: about how long to measure; a slow call is made once in a round.
    """
    wait(start())
    before = time.perf_counter()
    wait(start())
    calls = max(1, min(100, math.ceil(seconds / ROUNDS / (time.perf_counter() - before))))
    found = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        for _ in range(calls - 1):
            start()
        wait(start())
        found.append((time.perf_counter() - before) / calls)
    return {"seconds": statistics.median(found), "least": min(found), "most": max(found), "calls": calls * ROUNDS}


def parser(prog: str) -> argparse.ArgumentParser:
    """The arguments that the runner gives to every stage."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}")
    made.add_argument("--size", choices=PLANS, default="vit_l")
    made.add_argument("--scratch", type=pathlib.Path, required=True, help="folder with the checkpoint")
    made.add_argument("--records", type=pathlib.Path, required=True, help="file that is appended to (.jsonl)")
    made.add_argument("--torch_python", help="interpreter that has torch, numpy and scipy")
    made.add_argument("--scale", type=int, default=1, help="side of the image by the network's own")
    return made


def scale(arguments: argparse.Namespace) -> int:
    """Side of the image by the network's own; 1 in a rehearsal, which has compiled that already."""
    return 1 if arguments.size == "tiny" else arguments.scale


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
