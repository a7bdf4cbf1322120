"""Shared by all stages of the run: arguments, records, and the timing of a call.

Uses the standard library only: the runner imports it before packages are unpacked, and PyTorch's stages import it in a
separate environment.
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
    """The measurements of a stage, written to disk at once, one JSON line each.

    A stage that was stopped keeps its measurements and skips them when it is started again.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            text = path.read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]  # without an incomplete last line
            path.write_text(whole, "utf-8")
            self.found = {record["name"]: record for record in map(json.loads, whole.splitlines())}

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, **values: Any) -> None:
        """Add a record, write it to disk and to the log."""
        self.found[name] = {"name": name, **values}
        line = json.dumps(self.found[name])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measured program."""

    task: str  # "forward", "predict", "step", "both" or "styled"
    side: int  # of the image, pixels
    batch: int | None  # images; None: as many as fit into memory
    precision: str  # one of PRECISIONS
    variant: str  # "ours", or one of PyTorch's variants

    @property
    def name(self) -> str:
        """Name of the case in the records."""
        return f"{self.task}/{self.side}px/{self.batch or 'largest'}/{self.precision}/{self.variant}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    batches: tuple[int | None, ...]  # images, ordered by importance; None: as many as fit
    most: int  # upper limit of the largest batch
    scene: int  # side of the scene for sliding windows, pixels
    points: int  # sampled per mask by the set loss
    seconds: float = 1.0  # duration of the timing of a case
    precisions: tuple[str, ...] = PRECISIONS

    @property
    def some(self) -> int:
        """Batch size of the most important cases."""
        assert self.batches[0]
        return self.batches[0]


PLANS = {
    "vit_l": Plan((8, 1, None), 64, 4096, 12544),
    "tiny": Plan((2,), 4, 160, 98, 0.05, ("bfloat16",)),
}


def cases(task: str, side: int, plan: Plan, variants: Sequence[str]) -> list[Case]:
    """Return the cases of a task, ordered by importance: by batch, then variant, then precision.

    Only "step" and "forward" are measured at all batches, the other tasks at the first one. Batches after the first are
    measured for the first two variants only.
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
    """Return the number of images that fit, extrapolated linearly from the memory of two batches.

    The result is a multiple of the larger of the two batches, and at least that batch.

    Args:
      known: bytes by batch, of two batches.
      limit: available bytes.
      most: upper limit of the result.
    """
    (few, least), (some, more) = sorted(known.items())
    by_image = max((more - least) / (some - few), 1.0)
    fitting = int(some + (limit - more) / by_image)
    return max(min(fitting - fitting % some, most), some)


def measure(start: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict[str, float]:
    """Return the seconds of one call: median, minimum and maximum over rounds of consecutive calls.

    Args:
      start: starts the work, which may continue after `start` returns.
      wait: waits until this work and all earlier work is done.
      seconds: approximate duration of the measurement; a slow call runs once per round.
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
    """Return the parser of the arguments that the runner passes to every stage."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}")
    made.add_argument("--size", choices=PLANS, default="vit_l")
    made.add_argument("--scratch", type=pathlib.Path, required=True, help="folder with the checkpoint")
    made.add_argument("--records", type=pathlib.Path, required=True, help="file that is appended to (.jsonl)")
    made.add_argument("--torch_python", help="interpreter that has torch, numpy and scipy")
    made.add_argument("--scale", type=int, default=1, help="side of the image divided by that of the network")
    return made


def scale(arguments: argparse.Namespace) -> int:
    """Return the side of the image divided by that of the network; 1 in a rehearsal, which saves a compilation."""
    return 1 if arguments.size == "tiny" else arguments.scale


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
