"""Candidate widths of groups, with importance and cost.

Searches that choose all widths at once have an importance for each width of
each group; the importance of a network is their sum. This file computes with
numbers only and is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..cost.polynomial import Cost
from .budget import Budget
from .prunable import Prunable

# Assumed saving, as a ratio of the cost, of a width that saves nothing.
_NOTHING = 1e-12


def is_number(value: Any) -> bool:
    """Returns whether an argument is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def without_unscored(
    budget: Budget,
    net: Prunable,
    scores: Sequence[np.ndarray],
    most: int | None = None,
) -> Budget:
    """Returns the budget in which groups without scores keep their width.

    Args:
        budget (Budget): The user's budget.
        net (Prunable): The network.
        scores (Sequence[np.ndarray]): Scores per group, (size,); a group with
            a score that is not finite counts as without scores.
        most (int, optional): Largest number of candidates of a group, see
            :meth:`Budget.choices`.

    Raises:
        ValueError: If the number of scores is wrong, or the budget cannot be
            met, or is met already.
    """
    found, sizes = [len(part) for part in scores], net.units.sizes.tolist()
    if found != sizes:
        raise ValueError(
            f'there are scores of {found} units, expected those of all units '
            f'of each group: {sizes}'
        )
    unscored = {
        group.name
        for group, part in zip(net.units.groups, scores)
        if not np.isfinite(part).all()
    }
    budget = replace(budget, fixed=budget.fixed | unscored)
    budget.check(net, most)
    return budget


class Candidates:
    """Candidate widths of G groups, at most K per group.

    A choice is one index per group, (G,).

    Args:
        net (Prunable): The network, without masked units.
        budget (Budget): The budget, which the smallest widths meet.
        choices (Sequence[np.ndarray]): Per group (k,) widths, ascending.
        worth (Sequence[np.ndarray]): Per group (k,) importance of each width.

    Attributes:
        last (np.ndarray): (G,) index of the full widths.
        choices (Sequence[np.ndarray]): The argument.
        worth (Sequence[np.ndarray]): The argument.
    """

    def __init__(
        self,
        net: Prunable,
        budget: Budget,
        choices: Sequence[np.ndarray],
        worth: Sequence[np.ndarray],
    ) -> None:
        self.choices, self.worth = choices, worth
        self.last = np.array([len(widths) - 1 for widths in choices])
        self._widths, self._worth = _padded(choices), _padded(worth)
        self._cost = Cost(net.cost_model, net.units.sizes)
        self._metric = budget.metric
        self._full = net.cost_before[budget.metric]
        self._budget, self._net = budget, net

    def widths(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the widths (..., G) of choices (..., G)."""
        return self._widths[np.arange(len(self.last)), chosen]

    def value(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the total importance (...) of choices (..., G)."""
        return self._worth[np.arange(len(self.last)), chosen].sum(-1)

    def ratios(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the remaining ratios (...) of choices (..., G)."""
        widths = torch.from_numpy(self.widths(chosen))
        return self._cost(widths)[self._metric].numpy() / self._full

    def spare(self, chosen: np.ndarray) -> float:
        """Returns the unused ratio of the budget."""
        return self._budget.ratio - float(self.ratios(chosen))

    def nearest(self, widths: np.ndarray) -> np.ndarray:
        """Returns the choice of the widths nearest to given ones, (G,)."""
        pairs = zip(self.choices, widths)
        return np.array([np.argmin(abs(c - width)) for c, width in pairs])

    def uniform(self) -> np.ndarray:
        """Returns the largest choice with equal ratios within the budget.

        Each group has the width nearest to that ratio of its units, (G,).
        """
        # ratios at which a group gets its next larger width
        steps = [
            (widths[1:] + widths[:-1]) / 2 / widths[-1]
            for widths in self.choices
        ]
        ratios = np.unique(np.concatenate([[0.0], *steps]))

        def chosen(index: int) -> np.ndarray:
            ratio = ratios[index]
            return np.array(
                [np.searchsorted(s, ratio, 'right') for s in steps]
            )

        within, beyond = 0, len(ratios)
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self._within(chosen(middle)):
                within = middle
            else:
                beyond = middle
        return chosen(within)

    def fit(self, chosen: np.ndarray, spend: bool = False) -> np.ndarray:
        """Returns a similar choice that just meets the budget.

        Above the budget, the group that loses the least importance per cost
        gets its next smaller width, repeatedly. Then the group that gains the
        most importance per cost gets its next larger width, as long as the
        budget is met. Of equal groups the first counts.

        Args:
            chosen (np.ndarray): A choice, (G,).
            spend (bool): Whether groups become wider even if that loses
                importance. Defaults to False.

        Returns:
            np.ndarray: The new choice, (G,).
        """
        while not self._within(chosen):
            chosen = self._narrowed(chosen)
        while (wider := self._widened(chosen, spend)) is not None:
            chosen = wider
        return chosen

    def _within(self, chosen: np.ndarray) -> bool:
        return self._budget.meets(self._net, self.widths(chosen))

    def _narrowed(self, chosen: np.ndarray) -> np.ndarray:
        others, loss, saved = self._moved(chosen, -1)
        saved = np.maximum(saved, _NOTHING)
        return others[np.argmin(loss / saved)]

    def _widened(self, chosen: np.ndarray, spend: bool) -> np.ndarray | None:
        others, loss, saved = self._moved(chosen, 1)
        price = loss / np.maximum(-saved, _NOTHING)
        for index in np.argsort(price, kind='stable'):
            gains = spend or price[index] < 0
            if gains and self._within(others[index]):
                return others[index]
        return None

    def _moved(
        self, chosen: np.ndarray, way: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns all M choices in which one group has its next width.

        Returns:
            tuple: (M, G) choices, (M,) lost importance and (M,) saved cost.
        """
        to = chosen + way
        groups = np.flatnonzero((to >= 0) & (to <= self.last))
        others = np.repeat(chosen[None], len(groups), 0)
        others[np.arange(len(groups)), groups] += way
        return (
            others,
            self.value(chosen) - self.value(others),
            self.ratios(chosen) - self.ratios(others),
        )


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns rows as an array (G, K), padded with their last element."""
    most = max(map(len, rows))
    return np.stack([np.pad(r, (0, most - len(r)), 'edge') for r in rows])
