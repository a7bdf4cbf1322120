"""Run the stages of the accelerator run: `python -m benchmarks.gpu.run [STAGES...] [--size=tiny] --out=DIR`

Every stage is a process with its own time limit. `DIR/results/<stage>.json` is written for every stage that ran, even
if it failed or was stopped; `DIR/results/records.csv` contains all records of all stages. The same command with the
same folder continues: complete stages are skipped, other stages continue after their last measurement. See README.md.

Uses the standard library only, because this script first unpacks the missing packages (see `benchmarks.gpu.pack`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.stage import PLANS, Records, write_atomically

ROOT = pathlib.Path(__file__).parents[2]
PACKED = ROOT / "build" / "gpu" / "packages.zip"
LEAST_SECONDS = 20  # no stage is started if less time is left


@dataclasses.dataclass(frozen=True)
class Stage:
    """A process of the run."""

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: float  # time limit of the first attempt; stages that need more continue in the remaining time
    torch: bool = False  # runs in the interpreter that has PyTorch


OURS, TORCH = "benchmarks.gpu.ours", "benchmarks.torch_reference.accelerator"
# Ordered by importance. To add a measurement, add a row: a module that accepts the arguments of `stage.parser` and adds
# its measurements to `stage.Records`.
STAGES = (
    Stage("machine", "benchmarks.gpu.machine", (), 30),
    Stage("right", "benchmarks.gpu.right", (), 90),
    Stage("ceilings", "benchmarks.gpu.why", ("ceilings",), 30),
    Stage("step_ours", OURS, ("step",), 90),
    Stage("step_torch", TORCH, ("step",), 90, torch=True),
    Stage("golden", "benchmarks.gpu.golden", (), 120),
    Stage("forward_ours", OURS, ("forward",), 45),
    Stage("forward_torch", TORCH, ("forward",), 60, torch=True),
    Stage("main_job", "benchmarks.gpu.main_job", (), 120),
    Stage("step_options", "benchmarks.gpu.why", ("step",), 60),
    Stage("parts", "benchmarks.gpu.why", ("parts",), 60),
    Stage("both_ours", OURS, ("both",), 45),
    Stage("both_torch", TORCH, ("both",), 60, torch=True),
    Stage("styled_ours", OURS, ("styled",), 45),
    Stage("predict_ours", OURS, ("predict",), 45),
    Stage("predict_torch", TORCH, ("predict",), 60, torch=True),
    Stage("step_twice_the_side_ours", OURS, ("step", "--scale=2"), 60),
    Stage("step_twice_the_side_torch", TORCH, ("step", "--scale=2"), 60, torch=True),
    Stage("forward_twice_the_side_ours", OURS, ("forward", "--scale=2"), 45),
    Stage("forward_twice_the_side_torch", TORCH, ("forward", "--scale=2"), 60, torch=True),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Options of one run of the script."""

    out: pathlib.Path
    size: str
    seconds: float
    torch_python: str | None

    @property
    def results(self) -> pathlib.Path:
        """Folder of the results; only this folder has to be kept."""
        return self.out / "results"

    @property
    def scratch(self) -> pathlib.Path:
        """Folder of files that can be created again."""
        return self.out / "scratch"

    def result(self, stage: Stage) -> pathlib.Path:
        """Return the result file of a stage."""
        return self.results / f"{stage.name}.json"

    def outcome(self, stage: Stage) -> str:
        """Return the last outcome of a stage: "complete", "failed", "out of time", "interrupted", "left out" or "".

        "" means that the stage has not run yet.
        """
        path = self.result(stage)
        return json.loads(path.read_text("utf-8"))["outcome"] if path.exists() else ""


def main(argv: Sequence[str], stages: Sequence[Stage] = STAGES) -> int:
    """Run the requested stages; return 0 if all are complete, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in stages]
    parser.add_argument("stages", nargs="*", metavar="STAGES", help=f"default: all, in this order: {', '.join(names)}")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for results, logs and scratch files")
    parser.add_argument("--size", choices=PLANS, default="vit_l", help="tiny: a rehearsal on a CPU")
    parser.add_argument("--seconds", type=float, default=540, help="time limit of the whole run")
    parser.add_argument("--torch_python", help="interpreter with torch, numpy and scipy; this one if it has torch")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.stages) - set(names):
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    torch_python = arguments.torch_python or (sys.executable if importlib.util.find_spec("torch") else None)
    run = Run(arguments.out.absolute(), arguments.size, arguments.seconds, torch_python)
    end = time.monotonic() + run.seconds
    signal.signal(signal.SIGTERM, _interrupt)
    run.results.mkdir(parents=True, exist_ok=True)
    run.scratch.mkdir(exist_ok=True)
    environment = prepare(run)
    wanted = [stage for stage in stages if not arguments.stages or stage.name in arguments.stages]
    run_stages(run, wanted, environment, end)
    for stage in wanted:
        print(f"{stage.name:32} {run.outcome(stage) or 'not reached'}")
    return 0 if all(run.outcome(stage) == "complete" for stage in wanted) else 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def run_stages(run: Run, stages: Sequence[Stage], environment: Mapping[str, str], end: float) -> None:
    """Run every stage once, in order; then continue stages that reached their limit while there is time left."""
    incomplete = [stage for stage in stages if run.outcome(stage) != "complete"]
    for again in (False, True):
        for stage in incomplete:
            left = end - time.monotonic()
            if again and run.outcome(stage) != "out of time":
                continue
            if left < LEAST_SECONDS:
                return
            whole = again or run.size == "tiny"  # a rehearsal has no limits per stage
            run_stage(run, stage, environment, left if whole else min(stage.seconds, left))


def run_stage(run: Run, stage: Stage, environment: Mapping[str, str], seconds: float) -> None:
    """Run one stage within a time limit and write its result, even if the stage fails or is interrupted."""
    records = run.results / f"{stage.name}.jsonl"
    python = run.torch_python if stage.torch else sys.executable
    if python is None:
        write_result(run, stage, "left out", 0.0, "no interpreter with PyTorch (--torch_python)")
        return
    command = [python, "-m", stage.module, *stage.arguments, f"--size={run.size}", f"--scratch={run.scratch}"]
    command += [f"--records={records}", *([f"--torch_python={run.torch_python}"] if run.torch_python else [])]
    print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
    before, outcome = time.monotonic(), "interrupted"
    log = run.out / "logs" / f"{stage.name}.log"
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("ab") as file:
            # In a new session, so that all processes of the stage can be killed together.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                outcome = "complete" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                outcome = "out of time"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    finally:
        write_result(run, stage, outcome, time.monotonic() - before, shlex.join(command))
    if outcome == "failed":
        print(f"{stage.name} failed; the end of {log}:\n{log.read_text('utf-8', errors='replace')[-2000:]}", flush=True)


def write_result(run: Run, stage: Stage, outcome: str, seconds: float, command: str) -> None:
    """Write the records and the outcome of a stage to its result file, and all results to one table."""
    records = list(Records(run.results / f"{stage.name}.jsonl").found.values())
    if any("error" in record for record in records) and run.size == "tiny" and outcome == "complete":
        outcome = "failed"  # in the real run a variant may fail; in the rehearsal none may
    result = {
        "stage": stage.name,
        "outcome": outcome,
        "seconds": seconds,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "records": records,
    }
    write_atomically(run.result(stage), json.dumps(result, indent=1) + "\n")
    write_atomically(run.results / "records.csv", as_csv(run.results))


def as_csv(folder: pathlib.Path) -> str:
    """Return all records of all results in a folder as CSV, one value per line: stage, record, field, value."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["stage", "record", "field", "value"])
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        for record in result["records"]:
            for field, value in record.items():
                if field != "name":
                    table.writerow([result["stage"], record["name"], field, json.dumps(value)])
    return text.getvalue()


def prepare(run: Run) -> dict[str, str]:
    """Unpack the packages and write the random weights if they are missing; return the environment of the stages."""
    scratch = run.scratch
    site = scratch / "site"
    if not site.exists():
        unfinished = scratch / "site.tmp"
        unfinished.mkdir(exist_ok=True)
        if PACKED.exists():
            unpack(PACKED, unfinished)
        if importlib.util.find_spec("crossearth_data") is None:  # the package is not installed
            for name, folder in (("crossearth_data", "data"), ("crossearth_configs", "configs")):
                link = unfinished / name
                link.unlink(missing_ok=True)
                link.symlink_to(ROOT / folder)
        unfinished.rename(site)
    paths = [str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    folders = {
        "MPLCONFIGDIR": "matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "XDG_CACHE_HOME": "cache",
    }
    environment = os.environ | {name: str(scratch / folder) for name, folder in folders.items()}
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(scratch / "compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92"),
    }
    checkpoint = scratch / f"{run.size}.pth"
    if not checkpoint.exists():
        unfinished = checkpoint.with_stem("unfinished")
        draw = [sys.executable, "-m", "benchmarks.checkpoint", str(unfinished), f"--size={run.size}"]
        subprocess.run(draw, check=True, cwd=ROOT, env=environment | {"JAX_PLATFORMS": "cpu"})
        unfinished.with_suffix(".json").rename(checkpoint.with_suffix(".json"))
        unfinished.rename(checkpoint)
    return environment


def unpack(packed: pathlib.Path, site: pathlib.Path) -> None:
    """Unpack the packages that are not installed; the archive has a folder for each package."""
    with zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            package, _, path = name.partition("/")
            if not installed(package):
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


@functools.cache
def installed(package: str) -> bool:
    """Return whether a package is installed; `package` is its name on the package index."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
