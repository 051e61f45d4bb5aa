"""Deterministic selection of the units to remove next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quotas import Quotas


class Selector:
    """Offers units in order of importance, for one set of scores.

    Args:
        scores (Sequence[np.ndarray]): Scores of each group's units, (size,).
        least (Sequence[int]): (G,) units that must stay of each group.
        step (Sequence[int]): (G,) units of each group that are removed
            together.
        compared (np.ndarray, optional): (G,) whether a group has scores; if
            not, it is not pruned. Defaults to true for all groups.
        quotas (Quotas, optional): Groups that are compared with each other.
            Defaults to all groups.
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
            cost (np.ndarray): (G,) current saving of one unit of each group;
                ones for no normalisation. A bundle's importance is the sum
                of its scores over the sum of its costs.
            progress (float): Completed ratio of pruning from the start to the
                target; used for groups with a ratio of their own.

        Returns:
            tuple[int, np.ndarray] | None: Group and its units; None if no
            group can lose a unit. Of equal ones the first group, then the
            first unit, is chosen.
        """
        left, bundle, possible = self._possible()
        if self._quotas is not None:
            possible = self._quotas.next(left, possible, progress)
        if not possible.any():
            return None
        groups = np.flatnonzero(possible)
        importance = np.full(len(groups), np.inf)
        for i, g in enumerate(groups):
            a, b = self._taken[g], self._taken[g] + bundle[g]
            if cost[g] > 0:  # units that save nothing are chosen last
                score = self._sorted[g][a:b].sum()
                importance[i] = score / (bundle[g] * cost[g])
        best = int(groups[np.argmin(importance)])
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
