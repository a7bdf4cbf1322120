"""Lines of `Progress` against hand-computed speeds and times, with a clock that the test sets."""

import pytest
from absl import logging

from crossearth_jax.runtime.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(logging, "info", lambda form, *values: logged.append(form % values))
    return logged


def run(progress: Progress, clock: Clock, seconds: list[float], **kwargs) -> None:
    for step in seconds:
        clock.now += step
        progress.advance(**kwargs)


def test_rate_is_of_the_last_interval_and_time_left_follows_it(lines):
    clock = Clock()
    progress = Progress(10, "steps", every_seconds=4.0, images_per_unit=8, clock=clock)
    run(progress, clock, [40, 1, 1, 1, 1])
    # First line: 1 step in 40 s. Second: 4 steps in 4 s = 8 images/s, and 5 steps to go at 1 step/s.
    assert lines == [
        "1/10 steps (10%), 0.2 images/s, 0:06:00 left",
        "5/10 steps (50%), 8 images/s, 0:00:05 left",
    ]


def test_last_line_gives_the_average(lines):
    clock = Clock()
    run(Progress(4, "tiles", every_seconds=100.0, clock=clock), clock, [2, 2, 2, 2])
    assert lines == ["4/4 tiles in 0:00:08, 0.5 tiles/s"]


def test_units_of_an_earlier_run_are_done_but_not_fast(lines):
    clock = Clock()
    run(Progress(1000, "steps", every_seconds=1.0, done=998, clock=clock), clock, [2], note="loss 1.50")
    run(Progress(1000, "steps", every_seconds=1.0, done=998, clock=clock), clock, [0.5, 0.5])
    assert lines == [
        "999/1000 steps (100%), 0.5 steps/s, 0:00:02 left, loss 1.50",
        "1000/1000 steps in 0:00:01, 2 steps/s",
    ]


def test_unknown_total_and_a_stalled_interval(lines):
    clock = Clock()
    run(Progress(None, "records", every_seconds=1.0, clock=clock), clock, [1], count=1234)
    run(Progress(5, "records", every_seconds=1.0, clock=clock), clock, [1], count=0)
    assert lines == ["1234 records, 1234 records/s", "0/5 records (0%), 0 records/s, time left unknown"]
