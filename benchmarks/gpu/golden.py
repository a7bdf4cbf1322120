"""Run the tests that compare numbers with the reference on this device: `python -m benchmarks.gpu.golden …`

They run twice: with float32 matrix products, where all must pass, and at JAX's default precision, where tests may
exceed their tolerances if the device rounds operands to tf32. The failed tests are reported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import stage
from benchmarks.gpu.stage import Records
from benchmarks.workers import ROOT
from crossearth_jax.runtime import command

# Groups of tests, each a record of its own.
TESTS = {
    "vit_l": (
        ("tests/parity", "tests/training/optimizer_test.py"),
        ("tests/models",),
        ("tests/losses", "tests/ops", "tests/augment"),
    ),
    "tiny": (("tests/losses/mim_test.py", "tests/ops/normalization_test.py"),),
}
ONE_DEVICE = "not sharded and not platform_is_the_meshes"  # skips tests that need several devices, or a CPU
PRECISIONS = ("highest", "default")


def main(argv: Sequence[str]) -> None:
    """Run the tests at both precisions in parallel; fail if a test fails with float32 products."""
    arguments = stage.parser("benchmarks.gpu.golden").parse_args(argv)
    records = Records(arguments.records)
    for number, tests in enumerate(TESTS[arguments.size]):
        names = {precision: f"{precision}: {', '.join(tests)}" for precision in PRECISIONS}
        reports = {p: arguments.scratch / f"golden_{p}_{number}.xml" for p in PRECISIONS if names[p] not in records}
        started = {precision: start(precision, report, tests) for precision, report in reports.items()}
        for precision, process in started.items():
            process.wait()
            records.add(names[precision], **outcome(reports[precision]))
    exact = [record for name, record in records.found.items() if name.startswith("highest")]
    if any(record["failed"] or not record["passed"] for record in exact):
        raise SystemExit("tests fail in float32: see the log")


def start(precision: str, report: Path, tests: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start pytest on the default device of this machine, in several processes if pytest-xdist is installed."""
    platform = os.environ.get("JAX_PLATFORMS") or "cuda"
    environment = os.environ | {
        "CROSSEARTH_TEST_PLATFORM": platform,
        "JAX_DEFAULT_MATMUL_PRECISION": precision,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the card
    }
    workers = str(min(6, os.cpu_count() or 1))
    parallel = ["-n", workers, "--dist", "loadfile"] if importlib.util.find_spec("xdist") else []
    # Package versions may differ from CI's and give other warnings, which do not matter here.
    options = [
        "-k",
        ONE_DEVICE,
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=default",
        f"--junitxml={report}",
        *parallel,
    ]
    return subprocess.Popen([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, env=environment)


def outcome(report: Path) -> dict[str, Any]:
    """Return the numbers of passed and skipped tests and the names of the failed ones, from pytest's report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = [f"{case.get('classname')}::{case.get('name')}" for case in failed]
    return {"passed": len(cases) - len(failed) - skipped, "failed": names, "skipped": skipped}


if __name__ == "__main__":
    command.run(main)
