"""Progress of pruning: counts, and lines for the log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..search.schedule import Schedule
from ..slimming.history import Removal


@dataclass
class Tally:
    """Counts that a resumed run continues.

    Attributes:
        start (float): Remaining ratio when pruning started.
        steps (int): Optimiser steps since the last pruning step.
        removed (int): Number of pruned channels.
        saved (list[float]): Remaining ratios that were saved.
        skipped (int): Skipped batches, whose gradients were not finite.
        skipped_in_a_row (int): Current streak of skipped batches.
    """

    start: float = 1.0
    steps: int = 0
    removed: int = 0
    saved: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0


class Progress:
    """Lines for the log, one for every hundredth of the metric.

    Args:
        schedule (Schedule): Has the target.
        ratio (float): Remaining ratio of the target's metric at the start.
        iteration (int): Completed iterations at the start.
        last (int | None): Iteration of the last step, if it is known. The
            time left follows from it; otherwise from the metric, which falls
            in unequal steps if layers keep multiples of several channels.
    """

    def __init__(
        self,
        schedule: Schedule,
        ratio: float,
        iteration: int,
        last: int | None,
    ) -> None:
        self._schedule = schedule
        self._last = last
        # of the last line
        self._time, self._ratio, self._iteration = (
            time.time(),
            ratio,
            iteration,
        )

    def log(
        self,
        ratios: Mapping[str, float],
        tally: Tally,
        removals: Sequence[Removal],
        iteration: int,
    ) -> str:
        """Returns a line to log after a pruning step; '' for none.

        Args:
            ratios (Mapping): Remaining ratio of every metric.
            tally (Tally): Current counts.
            removals (Sequence[Removal]): Choices of this step.
            iteration (int): Completed iterations; for ``last``.
        """
        metric, target = self._schedule.metric, self._schedule.target
        now, ratio = time.time(), ratios[metric]
        drop = self._ratio - ratio
        if drop < 0.01 and ratio > target:
            return ''
        rest, done = max(0.0, ratio - target), max(drop, 1e-9)
        if self._last is not None:
            rest = max(0, self._last - iteration)
            done = max(1, iteration - self._iteration)
        left = (now - self._time) * rest / done
        self._time, self._ratio, self._iteration = now, ratio, iteration
        shares = ', '.join(f'{m} {r:.3f}' for m, r in ratios.items())
        last = ', '.join(map(str, removals[-3:]))
        when = f' in about {duration(left)}' if ratio > target else ' reached'
        return (
            f'pruning: {shares}; {tally.removed} channels pruned, last '
            f'{last}; target {metric} {target}{when}'
        )


def unscored_line(names: Sequence[str], waits: bool) -> str:
    """Returns a line to log when the groups without scores change.

    Args:
        names (Sequence[str]): Names of the groups without scores.
        waits (bool): Whether pruning waits until more groups have scores.
    """
    if not names:
        return 'all channel groups have scores again'
    return (
        f'no scores of {listed(names)}: since the last pruning step some of '
        'the layers that read these channels had no gradients, or zeros '
        'only. The groups are not pruned until they have scores'
        + (
            '; pruning waits for them, because the other groups alone cannot '
            'reach the target'
            if waits
            else ''
        )
    )


def listed(names: Sequence[str], most: int = 5) -> str:
    """Returns names of channel groups, the first ones if there are many."""
    more = len(names) - most
    rest = f' and {more} more' if more > 0 else ''
    return f'channel groups {", ".join(names[:most])}{rest}'


def duration(seconds: float) -> str:
    """Returns a duration as hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
