"""Kill a training with SIGKILL at random moments, resume it, and compare its result with an uninterrupted run.

    python benchmarks/kill_and_resume.py --out=FOLDER --kills=20

Half of the kills happen while steps run, half while a checkpoint is written (a random delay after its temporary folder
appears). After each kill, the same command is started again. At the end, every array of the last checkpoint
(parameters, their exponential moving average, optimizer state) must have the same bits as in the uninterrupted run, and
every logged metric the same value. Prints one JSON object; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

COMMAND = ("-m", "crossearth_jax.main")
POLL = 0.002  # seconds
UNREPEATABLE = ("time", "images_per_second", "input_wait")  # metrics that depend on the machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the test; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs; must not exist")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of the run (default: 6 for each kill)")
    parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--config", default="configs/blue_marble.py")
    parser.add_argument("overrides", nargs="*", help="more flags of crossearth_jax.main, after --")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True)
    steps = options.steps or 6 * options.kills
    runs = Runs(options.out, options.config, steps, options.every, options.overrides)
    began = time.monotonic()
    runs.finish("whole")
    draw = random.Random(options.seed)
    kills = [runs.end(signal.SIGKILL, *moment(draw, number)) for number in range(options.kills)]
    runs.finish("killed")
    differences = compare(options.out / "whole", options.out / "killed", steps)
    summary = {
        "kills": len(kills),
        "in_a_save": sum(kill["unfinished_save"] for kill in kills),
        "steps": steps,
        "differences": differences,
        "seconds": round(time.monotonic() - began),
        "moments": kills,
    }
    print(json.dumps(summary, indent=2))
    return 1 if differences else 0


def moment(draw: random.Random, number: int) -> tuple[str, int, float]:
    """Return the event to wait for (a "save" or new "steps"), its count, and the delay after it in seconds."""
    if number % 2:
        return "save", 1, draw.uniform(0.0, 0.05)
    return "steps", draw.randint(1, 4), draw.uniform(0.0, 0.1)


class Runs:
    """The uninterrupted run ("whole") and the run that is killed ("killed")."""

    def __init__(self, out: Path, config: str, steps: int, every: int, overrides: Sequence[str] = ()):
        self._out = out
        self._flags = [
            *(f"--config={config}", "--mode=train", "--config.train.log_every=1"),
            *(f"--config.train.steps={steps}", f"--config.train.checkpoint_every={every}"),
            *overrides,
        ]
        # With cached compiled programs, a restart takes seconds.
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def _start(self, name: str, program: Sequence[str] = COMMAND) -> subprocess.Popen[bytes]:
        with (self._out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *program, *self._flags, f"--workdir={self._out / name}"],
                env=self._environment,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )

    def run(self, name: str, *program: str) -> int:
        """Start a run and wait for its end; return its exit code.

        Args:
          name: "whole" or "killed".
          *program: arguments of the interpreter instead of those of the training command.
        """
        return self._start(name, program or COMMAND).wait()

    def finish(self, name: str) -> None:
        """Start a run and wait until it ends; exit if it fails."""
        code = self.run(name)
        if code:
            sys.exit(f"the {name} run ended with exit code {code}; see {self._out / name}.log")

    def end(self, number: signal.Signals, event: str, count: int, delay: float) -> dict[str, Any]:
        """Start the killed run, wait for the event, send the signal and return what was found."""
        folder = self._out / "killed"
        before = last_logged(folder)
        happened: dict[str, Callable[[], bool]] = {
            "save": lambda: bool(unfinished_saves(folder) - stale),
            "steps": lambda: last_logged(folder, since) >= before + count,
        }
        stale, since = unfinished_saves(folder), time.time()
        process = self._start("killed")
        while process.poll() is None and not happened[event]():
            time.sleep(POLL)
        time.sleep(delay)
        if process.poll() is not None:
            sys.exit(f"the run ended with exit code {process.returncode} before it was killed; raise --steps")
        os.killpg(process.pid, number)  # to all processes of the run, as a terminal does
        found = {
            "exit_code": process.wait(),
            "event": event,
            "delay": round(delay, 4),
            "logged_step": last_logged(folder),
            "complete_checkpoint": max(complete_saves(folder), default=None),
            "unfinished_save": bool(unfinished_saves(folder) - stale),
        }
        print(json.dumps(found), file=sys.stderr, flush=True)
        return found


def last_logged(folder: Path, since: float = 0.0) -> int:
    """Return the last step in `metrics.jsonl` that was logged after the time `since`; 0 if there is none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((record["step"] for record in whole if record["time"] >= since), default=0)


def unfinished_saves(folder: Path) -> set[str]:
    """Return the names of temporary checkpoint folders."""
    return {path.name for path in (folder / "checkpoints").glob("*tmp*")}


def complete_saves(folder: Path) -> set[int]:
    """Return the steps of complete checkpoints."""
    return {int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()}


def compare(first: Path, second: Path, step: int) -> list[str]:
    """Return the names of arrays and logged steps that differ between the runs."""
    a, b = (arrays(folder / "checkpoints", step) for folder in (first, second))
    names = [name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or a[name] != b[name]]
    records = [repeatable(folder / "metrics.jsonl") for folder in (first, second)]
    logged = [f"metrics of step {n}" for n in range(1, step + 1) if records[0].get(n) != records[1].get(n)]
    return names + logged


def arrays(folder: Path, step: int) -> dict[str, bytes]:
    """Return type, shape and bytes of every array of a checkpoint."""
    with ocp.CheckpointManager(folder.absolute()) as manager:
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    leaves = jax.tree_util.tree_leaves_with_path(state)
    values = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {name: f"{v.dtype} {v.shape} ".encode() + v.tobytes() for name, v in values.items()}


def repeatable(path: Path) -> dict[int, dict[str, Any]]:
    """Return step -> logged metrics, without those that depend on the machine."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({record["step"] for record in records}) == len(records), "a step was logged twice"
    return {r["step"]: {name: value for name, value in r.items() if name not in UNREPEATABLE} for r in records}


if __name__ == "__main__":
    sys.exit(main())
