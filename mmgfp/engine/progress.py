"""How far pruning is: counts, and words for the log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..search.pruner import Removal
from ..search.schedule import Schedule


@dataclass
class Tally:
    """Counts that a resumed run goes on with.

    Attributes:
        start (float): Remaining share when pruning started.
        steps (int): Optimiser steps since the last pruning step.
        removed (int): Channels removed.
        saved (list[float]): Remaining shares that were saved.
        skipped (int): Batches without finite gradients.
        skipped_in_a_row (int): The last of them.
    """

    start: float = 1.0
    steps: int = 0
    removed: int = 0
    saved: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0


class Progress:
    """Words for the log, one line for every hundredth that went.

    Args:
        schedule (Schedule): Has the target.
        ratio (float): Remaining share of the target's metric at the start.
    """

    def __init__(self, schedule: Schedule, ratio: float) -> None:
        self._schedule = schedule
        self._time, self._ratio = time.time(), ratio  # last told

    def tell(
        self,
        ratios: Mapping[str, float],
        tally: Tally,
        removals: Sequence[Removal],
    ) -> str:
        """What to log after a pruning step; '' for nothing yet.

        Args:
            ratios (Mapping): Remaining share of every metric.
            tally (Tally): Has counted the channels.
            removals (Sequence[Removal]): Choices of this step.
        """
        metric, target = self._schedule.metric, self._schedule.target
        now, ratio = time.time(), ratios[metric]
        drop = self._ratio - ratio
        if drop < 0.01 and ratio > target:
            return ''
        left = (now - self._time) * max(0.0, ratio - target) / max(drop, 1e-9)
        self._time, self._ratio = now, ratio
        shares = ', '.join(f'{m} {r:.3f}' for m, r in ratios.items())
        last = ', '.join(map(str, removals[-3:]))
        return (
            f'pruning: {shares}; {tally.removed} channels pruned, last '
            f'{last}; target {metric} {target} in about {duration(left)}'
        )


def unscored_line(names: Sequence[str], waits: bool) -> str:
    """What to log when other groups than before have no scores.

    Args:
        names (Sequence[str]): Of these groups.
        waits (bool): Whether nothing is pruned until more have some.
    """
    if not names:
        return 'all channel groups have scores again'
    return (
        f'no scores of {listed(names)}: since the last pruning step no '
        'gradient has reached the layers that read these channels, or not '
        'all of them, or only zeros. They are left out of pruning until '
        'there are some'
        + (
            '; nothing is pruned until then, because the others alone cannot '
            'reach the target'
            if waits
            else ''
        )
    )


def listed(names: Sequence[str], most: int = 5) -> str:
    """Channel groups by name, the first ones if there are many."""
    more = len(names) - most
    rest = f' and {more} more' if more > 0 else ''
    return f'channel groups {", ".join(names[:most])}{rest}'


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock has them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
