"""What the command that compiles for TPU slices refuses, and how it reads the compiler's answers."""

import os
import subprocess
import sys

import pytest

from crossearth_jax.aot.chips import CHIPS, roofline
from crossearth_jax.compile import compiler_failure


def run(*arguments):
    command = [sys.executable, "-m", "crossearth_jax.main", "--config=configs/blue_marble.py", "--mode=compile"]
    # The compiler is loaded into a process of its own: this one has made its backend already.
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=dict(os.environ), timeout=1200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x4"], "error: unknown topology 'v9:2x4'; expected a generation (v5e, v6e, v5p)"),
        (["--topology=v5e:3x5"], "error: topology 'v5e:3x5' does not exist"),
        ([], "error: --mode=compile needs --topology"),
        (["--topology=v5e:2x4", "--batch_per_chip=0"], "error: flag --batch_per_chip=0"),
    ],
)
def test_wrong_slices_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)


def test_memory_that_is_missing_is_named():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.30G of 15.75G hbm. Exceeded by 5.5G."
    assert compiler_failure(message) == "needs 21.30G of 15.75G HBM"
    assert compiler_failure("INTERNAL: no\nmore") == "INTERNAL: no"


def test_roofline_divides_by_the_peaks():
    bound = roofline(CHIPS["v5e"], flops=197e9, memory_bytes=819e6, sent_bytes=200e6)
    assert bound == pytest.approx((1e-3, 1e-3, 1e-3))
