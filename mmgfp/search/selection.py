"""Selects the units to remove next. Pure numbers, deterministic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quotas import Quotas


class Selector:
    """Offers units in order of importance, for one set of scores.

    Args:
        scores (Sequence[np.ndarray]): Per group those of its units, (size,).
        least (Sequence[int]): (G,) units that must stay of each group.
        step (Sequence[int]): (G,) units of each group that go together.
        compared (np.ndarray, optional): (G,) whether a group has scores; if
            not, it loses nothing. By default all have.
        quotas (Quotas, optional): Which groups are compared with each other.
            By default all are.
    """

    def __init__(
        self,
        scores: Sequence[np.ndarray],
        least: Sequence[int],
        step: Sequence[int],
        compared: np.ndarray | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self._order = [np.argsort(s, kind='stable') for s in scores]
        self._sorted = [
            np.asarray(s, float)[o] for s, o in zip(scores, self._order)
        ]
        self._taken = np.zeros(len(scores), dtype=int)
        self._sizes = np.array([len(s) for s in scores], dtype=int)
        self._least, self._step = np.asarray(least), np.asarray(step)
        self._compared = True if compared is None else compared
        self._quotas = quotas

    def next(
        self, cost: np.ndarray, progress: float = 1.0
    ) -> tuple[int, np.ndarray] | None:
        """Select the least important units.

        Args:
            cost (np.ndarray): (G,) what one unit of each group saves now;
                ones for no normalisation. A bundle's importance is the sum
                of its scores over the sum of its costs.
            progress (float): Share of the way to the target that pruning has
                gone; matters for groups with a share of their own.

        Returns:
            tuple[int, np.ndarray] | None: Group and its units; None when no
            group can lose any. Ties go to the first group, then the first
            unit.
        """
        left, bundle, possible = self._possible()
        if self._quotas is not None:
            possible = self._quotas.next(left, possible, progress)
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

    def is_behind(self) -> bool:
        """Returns whether a group has not reached its own ratio yet."""
        if self._quotas is None:
            return False
        left, _, possible = self._possible()
        return bool((possible & (self._quotas.lag(left, 1.0) > 0)).any())

    def _possible(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns units left, units of a step, and whether it is allowed."""
        left = self._sizes - self._taken
        bundle = np.where(left % self._step, left % self._step, self._step)
        return left, bundle, (left - bundle >= self._least) & self._compared
