"""Time the README's run on this device, from the command to the report: `python -m benchmarks.gpu.main_job …`"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu import stage
from benchmarks.gpu.stage import Records
from benchmarks.workers import ROOT
from crossearth_jax.runtime import command


def main(argv: Sequence[str]) -> None:
    """Run it without prepared data; at full size also without cached compiled programs."""
    arguments = stage.parser("benchmarks.gpu.main_job").parse_args(argv)
    records, folder = Records(arguments.records), arguments.scratch / "main_job"
    shutil.rmtree(folder, ignore_errors=True)
    environment = dict(os.environ)
    if arguments.size != "tiny":
        del environment["JAX_COMPILATION_CACHE_DIR"]
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    program = [sys.executable, "-m", "crossearth_jax.main", "--config=configs/blue_marble.py"]
    program += [f"--workdir={folder / 'run'}", f"--config.data.data_dir={folder / 'data'}"]
    if arguments.size == "tiny":
        program += ["--config.train.steps=4", "--config.evaluate.settings=('temperate_green2temperate_brown',)"]
    before = time.perf_counter()
    subprocess.run(program, check=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - before
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    records.add("blue_marble", seconds=seconds, miou={name: cell["miou"] for name, cell in results.items()})


if __name__ == "__main__":
    command.run(main)
