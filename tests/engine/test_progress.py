"""The time left that the log of pruning shows."""

from __future__ import annotations

from mmgfp.engine import progress
from mmgfp.engine.progress import Progress, Tally
from mmgfp.search.schedule import Schedule


def lines(monkeypatch, kind, last, ratios, iterations) -> list[str]:
    """The ends of the lines when an iteration takes three seconds."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, 'time', lambda: clock[0])
    shown = Progress(Schedule('flops', 0.5, 10, kind, 1.0), 1.0, 0, last)
    found = []
    for ratio, iteration in zip(ratios, iterations):
        clock[0] = 3.0 * iteration
        line = shown.log(dict(flops=ratio), Tally(), [], iteration)
        found.append(line.rpartition('target flops 0.5')[2].strip())
    return found


def test_the_last_step_is_known(monkeypatch):
    """The metric falls by much in the first step, and no more for a while."""
    schedule = Schedule('flops', 0.5, 10, 'auto', 1.0)
    last = schedule.last_step(105)
    assert last == 100
    assert schedule.goal(100, 105) == 0.5 < schedule.goal(90, 105)
    found = lines(monkeypatch, 'auto', last, (0.8, 0.75, 0.5), (10, 60, 100))
    assert found == ['in about 0:04:30', 'in about 0:02:00', 'reached']


def test_the_last_step_is_not_known(monkeypatch):
    """The metric falls by 0.1 in 30 s, and 0.4 are left."""
    assert Schedule('flops', 0.5, 10, 1, 1.0).last_step(105) is None
    found = lines(monkeypatch, 1, None, (0.9, 0.8), (10, 20))
    assert found == ['in about 0:02:00', 'in about 0:01:30']


def test_time_left_of_a_resumed_run(monkeypatch):
    """Ten iterations took 30 s; 30 of 100 are left."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, 'time', lambda: clock[0])
    shown = Progress(Schedule('flops', 0.5, 10, 'auto', 1.0), 0.7, 60, 100)
    clock[0] = 30.0
    line = shown.log(dict(flops=0.65), Tally(), [], 70)
    assert line.endswith('in about 0:01:30')


def test_last_step_with_accumulated_gradients():
    """In 70 of 100 iterations, 21 each."""
    schedule = Schedule('flops', 0.5, 7, 'auto', 0.7)
    assert schedule.last_step(100, accumulation=3) == 63
    assert schedule.goal(63, 100, accumulation=3) == 0.5
    assert schedule.goal(42, 100, accumulation=3) > 0.5
