"""Which units go next. Pure numbers, deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Floor:
    """Least that must stay of each group.

    Attributes:
        min_channels (int): Channels. Defaults to 1.
        min_ratio (float): Share of the group's original units. Defaults to 0.
        round_to (int): Channels are removed so that a multiple of this
            stays. Defaults to 1.
    """

    min_channels: int = 1
    min_ratio: float = 0.0
    round_to: int = 1

    def __str__(self) -> str:
        return ', '.join(f'{k}={v}' for k, v in vars(self).items())

    def units(self, original: int, width: int) -> int:
        """Units that must stay of a group.

        Args:
            original (int): Units it had at first.
            width (int): Channels per unit.
        """
        least = max(
            1,
            math.ceil(self.min_channels / width),
            math.ceil(self.min_ratio * original),
        )
        step = self.step(width)
        return math.ceil(least / step) * step

    def step(self, width: int) -> int:
        """Units that are removed together."""
        return self.round_to // math.gcd(self.round_to, width)


class Selector:
    """Offers units in order of importance, for one set of scores.

    Args:
        fisher (Sequence[np.ndarray]): Per group the accumulated scores of its
            units, shape (size,).
        widths (Sequence[int]): Channels per unit.
        originals (Sequence[int]): Units each group had at first.
        floor (Floor): What must stay.
        compared (np.ndarray, optional): (G,) whether a group has scores; if
            not, it loses nothing. By default all have.
    """

    def __init__(
        self,
        fisher: Sequence[np.ndarray],
        widths: Sequence[int],
        originals: Sequence[int],
        floor: Floor,
        compared: np.ndarray | None = None,
    ) -> None:
        self._order = [np.argsort(f, kind='stable') for f in fisher]
        self._sorted = [
            np.asarray(f, float)[o] for f, o in zip(fisher, self._order)
        ]
        self._taken = np.zeros(len(fisher), dtype=int)
        self._sizes = np.array([len(f) for f in fisher], dtype=int)
        self._compared = True if compared is None else compared
        self._step = np.array([floor.step(w) for w in widths], dtype=int)
        self._floor = np.array(
            [floor.units(n, w) for n, w in zip(originals, widths)], dtype=int
        )

    def next(self, cost: np.ndarray) -> tuple[int, np.ndarray] | None:
        """Take the least important units off the list.

        Args:
            cost (np.ndarray): (G,) what one unit of each group saves now;
                ones for no normalisation. A bundle's importance is the sum
                of its scores over the sum of its costs.

        Returns:
            tuple[int, np.ndarray] | None: Group and its units; None when no
            group can lose any. Ties go to the first group, then the first
            unit.
        """
        left = self._sizes - self._taken
        bundle = np.where(left % self._step, left % self._step, self._step)
        possible = (left - bundle >= self._floor) & self._compared
        if not possible.any():
            return None
        importance = np.full(len(left), np.inf)
        for g in np.flatnonzero(possible):
            a, b = self._taken[g], self._taken[g] + bundle[g]
            score = self._sorted[g][a:b].sum()
            if cost[g] > 0:  # what saves nothing goes last
                importance[g] = score / (bundle[g] * cost[g])
        best = int(np.argmin(np.where(possible, importance, np.inf)))
        if not possible[best]:  # all that are possible are infinite
            best = int(np.flatnonzero(possible)[0])
        a = self._taken[best]
        self._taken[best] = b = a + bundle[best]
        return best, np.sort(self._order[best][a:b])
