"""Widths that groups may have: what they are worth, and what they cost.

Searches that choose all widths at once have a worth for each width of each
group; that of a network is their sum. Pure numbers, deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..cost.polynomial import Cost
from .budget import Budget
from .prunable import Prunable

# What a width that saves nothing is taken to save, as a ratio of the cost.
_NOTHING = 1e-12


def without_unscored(
    budget: Budget, net: Prunable, scores: Sequence[np.ndarray]
) -> Budget:
    """Returns the budget with all groups fixed that have no scores.

    Args:
        budget (Budget): Of the user.
        net (Prunable): The network.
        scores (Sequence[np.ndarray]): Per group, (size,); one that is not
            finite means that the group has none.

    Raises:
        ValueError: If the numbers of scores are others, or the budget cannot
            be met, or is met already.
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
    budget.check(net)
    return budget


class Candidates:
    """Candidate widths of G groups, at most K of one.

    What is chosen is an index for each group, (G,).

    Args:
        net (Prunable): The network, without masked units.
        budget (Budget): What may remain; the least widths meet it.
        choices (Sequence[np.ndarray]): Per group its widths, ascending.
        worth (Sequence[np.ndarray]): Per group what each of them is worth.

    Attributes:
        last (np.ndarray): (G,) the index of the full widths.
        choices (Sequence[np.ndarray]): As given.
        worth (Sequence[np.ndarray]): As given.
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
        """Returns the units of each group, (..., G), as chosen."""
        return self._widths[np.arange(len(self.last)), chosen]

    def value(self, chosen: np.ndarray) -> np.ndarray:
        """Returns what networks are worth, (...), as chosen, (..., G)."""
        return self._worth[np.arange(len(self.last)), chosen].sum(-1)

    def ratios(self, chosen: np.ndarray) -> np.ndarray:
        """Returns what remains of the metric, (...), as chosen, (..., G)."""
        widths = torch.from_numpy(self.widths(chosen))
        return self._cost(widths)[self._metric].numpy() / self._full

    def spare(self, chosen: np.ndarray) -> float:
        """Returns the ratio that the budget has left."""
        return self._budget.ratio - float(self.ratios(chosen))

    def nearest(self, widths: np.ndarray) -> np.ndarray:
        """Returns for each group the choice next to a width, (G,)."""
        pairs = zip(self.choices, widths)
        return np.array([np.argmin(abs(c - width)) for c, width in pairs])

    def uniform(self) -> np.ndarray:
        """Returns the largest choice within the budget at one ratio of all.

        Each group has the width next to that ratio of its units.
        """
        # ratios from which on a group has its next wider width
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

        within, beyond = 0, len(ratios)  # all are at their least at first
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self._within(chosen(middle)):
                within = middle
            else:
                beyond = middle
        return chosen(within)

    def fit(self, chosen: np.ndarray, spend: bool = False) -> np.ndarray:
        """Returns a choice near to this one that the budget just allows.

        Above the budget, the group goes one width down that loses the least
        worth per cost, again and again. Then the group goes one width up that
        gains the most per cost, as long as the budget holds. Ties go to the
        first group.

        Args:
            chosen (np.ndarray): (G,).
            spend (bool): Whether what is left of the budget is spent where
                that loses worth, too. Defaults to False.
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
        """All M choices in which one group has its next width.

        Returns:
            tuple: (M, G) choices, (M,) the worth that each loses, and the
            cost that it saves.
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
    """(G, K); the last one of a row is repeated."""
    most = max(map(len, rows))
    return np.stack([np.pad(r, (0, most - len(r)), 'edge') for r in rows])
