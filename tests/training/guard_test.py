"""Messages, saved batches and errors of the guard; tests/training/loop_test.py has whole runs with faults."""

import jax.numpy as jnp
import numpy as np
import pytest

from crossearth_jax.config import UserError
from crossearth_jax.training import guard
from crossearth_jax.training.guard import Guard

BATCH = {"image": jnp.arange(6, dtype=jnp.uint8).reshape(2, 3), "index": jnp.array([4, 5])}


def metrics(nonfinite):
    return {"nonfinite": jnp.asarray(nonfinite)}


def test_a_fault_stops_one_step_late_or_when_flushed(tmp_path):
    watch = Guard("stop", tmp_path)
    watch.check(6, BATCH, metrics(False))
    watch.check(7, BATCH, metrics(True))
    with pytest.raises(UserError, match=r"of step 7 was not finite.*crossearth_jax\.replay .*nonfinite_step_7\.npz'"):
        watch.flush()
    watch.flush()  # has been accounted for
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_7.npz"]
    saved = np.load(tmp_path / "nonfinite_step_7.npz")
    assert saved["step"] == 7
    np.testing.assert_array_equal(saved["image"], BATCH["image"])
    np.testing.assert_array_equal(saved["index"], BATCH["index"])


def test_faults_are_skipped_and_counted_until_they_do_not_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(guard, "MOST_IN_A_ROW", 3)
    watch = Guard("skip", tmp_path)
    for step, fault in enumerate([True, True, False, True, True]):
        watch.check(step, BATCH, metrics(fault))
    watch.flush()
    assert watch.skipped == 4
    assert "step 4 was not finite and was skipped (4 so far); find the cause with" in caplog.text
    watch.check(5, BATCH, metrics(True))
    with pytest.raises(UserError, match=r"step 5 was not finite, and the 2 steps before it were skipped for the same"):
        watch.flush()


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.nonfinite is 'ignore', expected one of stop, skip"):
        Guard("ignore", tmp_path)
