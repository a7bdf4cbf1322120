"""Runs that are ended by kills, signals and a full disk, in real processes of the real command.

One run is ended in all these ways, one after another, and continued by the same command each time. At the end it must
have the same bits as an uninterrupted run. `benchmarks/kill_and_resume.py` does this with any number of kills.
"""

import dataclasses
import signal
from types import SimpleNamespace

import pytest

from benchmarks.kill_and_resume import Runs, compare, complete_saves

STEPS, EVERY = 60, 5
# The command with a limit for the size of its files, which checkpoints exceed and small files do not. It replaces a
# full disk, which would need the right to mount one. Writes beyond the limit fail with EFBIG instead of ENOSPC.
FULL_DISK = """
import resource
from crossearth_jax import main
from crossearth_jax.runtime import command

resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
command.run(main.main)
"""


@pytest.fixture(scope="module")
def disturbed(tiny_config, write_experiment, tmp_path_factory):
    """Return what happened to the run, in the order of the fields."""
    # On one device and with one task, because each of the seven processes traces its step again. Other tests check
    # within one process that the other task and styles resume bit-identically.
    small = dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(tiny_config.data, batch_size=2),
        model=dataclasses.replace(tiny_config.model, mim=None),
        style=None,
        mim=None,
        optimizer=dataclasses.replace(tiny_config.optimizer, accumulate=1),
    )
    out = tmp_path_factory.mktemp("disturbed")
    experiment = write_experiment(out, small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        runs = Runs(out, str(experiment), STEPS, EVERY)
        runs.finish("whole")
        log = out / "killed.log"

        def last_line():
            return log.read_text().splitlines()[-1]

        return SimpleNamespace(
            out=out,
            in_steps=runs.end(signal.SIGKILL, "steps", 7, 0.01),
            in_save=runs.end(signal.SIGKILL, "save", 1, 0.0),
            interrupted=runs.end(signal.SIGINT, "steps", 2, 0.0) | {"line": last_line()},
            terminated=runs.end(signal.SIGTERM, "steps", 2, 0.0) | {"line": last_line()},
            before_full=max(complete_saves(out / "killed")),
            full=runs.run("killed", "-c", FULL_DISK),
            full_lines=[line for line in log.read_text().splitlines() if line.startswith("error: ")],
            after_full=complete_saves(out / "killed"),
            finished=runs.finish("killed"),
            log=log.read_text(),
        )


def test_a_run_that_was_ended_in_every_way_has_the_bits_of_one_that_was_not(disturbed):
    assert compare(disturbed.out / "whole", disturbed.out / "killed", STEPS) == []
    assert "Traceback" not in disturbed.log


def test_kills_strike_between_and_within_saves(disturbed):
    assert [disturbed.in_steps["exit_code"], disturbed.in_save["exit_code"]] == [-signal.SIGKILL] * 2
    assert disturbed.in_save["unfinished_save"]
    assert disturbed.in_save["complete_checkpoint"] < STEPS


@pytest.mark.parametrize(("name", "code"), [("interrupted", 130), ("terminated", 143)])
def test_a_signal_saves_the_step_it_meets(disturbed, name, code):
    found = getattr(disturbed, name)
    assert found["exit_code"] == code
    saved = found["complete_checkpoint"]
    assert found["line"] == f"stopped at step {saved} and saved; run the same command again to continue"
    assert saved == found["logged_step"]
    assert f"restored step {saved} from" in disturbed.log


def test_a_full_disk_leaves_the_last_checkpoint_usable(disturbed):
    assert disturbed.full == 2
    (line,) = disturbed.full_lines  # Python may print warnings after it about writes that orbax never started
    assert "could not be written to" in line
    last = disturbed.before_full
    assert f"the last complete checkpoint is step {last}; make room and run the same command" in line
    assert max(disturbed.after_full) == last
    assert disturbed.log.count(f"restored step {last} from") == 2  # by the run that fails, and by the one after it
