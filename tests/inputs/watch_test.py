"""Waiting for data is measured, reported and limited."""

import itertools
import time

import pytest

from crossearth_jax.config import UserError
from crossearth_jax.inputs import watch
from crossearth_jax.inputs.watch import WatchedBatches


class Slow:
    """Iterator of increasing numbers; the batch numbered `slow` takes `seconds`."""

    def __init__(self, slow, seconds):
        self.closed = False
        self._numbers, self._slow, self._seconds = itertools.count(), slow, seconds

    def __next__(self):
        number = next(self._numbers)
        if number == self._slow:
            time.sleep(self._seconds)
        return number

    def close(self):
        self.closed = True


def test_a_slow_reader_is_reported_and_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(watch, "WARN_SECONDS", 0.1)
    source = Slow(2, 0.5)
    batches = WatchedBatches(source, "a/b, split train", workers=0, timeout=30.0)
    with caplog.at_level("WARNING"):
        assert list(itertools.islice(batches, 4)) == [0, 1, 2, 3]
    assert "waiting for a batch of a/b, split train for 0 s, read in the main process" in caplog.text
    assert 0.5 < batches.waited_share() <= 1.0
    batches.close()
    assert source.closed


def test_a_reader_that_hangs_ends_the_run():
    batches = WatchedBatches(Slow(1, 3.0), "a/b, split train", workers=3, timeout=0.2)
    assert next(batches) == 0
    with pytest.raises(UserError, match=r"no batch of a/b, split train for 0 s \(data.timeout\), 0 of 3 reader proc"):
        next(batches)


def test_errors_of_the_reader_arrive(monkeypatch):
    class Failing(Slow):
        def __next__(self):
            raise UserError("record 7 cannot be read")

    with pytest.raises(UserError, match="record 7 cannot be read"):
        next(WatchedBatches(Failing(0, 0), "a/b", workers=0, timeout=1.0))
