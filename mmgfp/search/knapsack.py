"""All widths at once: the most importance that a budget can hold.

The idea is that of HALP (Shen et al., NeurIPS 2022): what stays is a knapsack
problem, with importance as the worth of channels and latency as their cost.
The form is ours. Each group has a choice between widths, and a width is worth
the sum of its greatest scores: a multiple-choice knapsack, solved exactly by
HiGHS. The cost of a layer is bilinear in the widths before and behind it, so
it is linearised at a choice that just meets the budget: each other width of a
group costs what it changes if all other groups stay. The solution is brought
into the budget by exact costs, and becomes the next such choice if it is worth
more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from ..criteria.base import Criterion
from ..criteria.fisher import Fisher
from .budget import Budget
from .candidates import Candidates, without_unscored
from .prunable import Prunable

# How far, in ratios of its units, a group may move in one step of the search
# that fails to gain anything before the search ends.
_NEAREST = 1 / 32

# Gap to the optimum of a linearised problem, as a ratio. Nodes are bounded as
# well: time limits would let processes differ.
_GAP = 1e-5
_NODES = 2000


class Knapsack:
    """Keeps the most importance that is possible within the budget.

    Args:
        criterion (Criterion, optional): Scores units. Defaults to
            :class:`mmgfp.criteria.fisher.Fisher`.
        candidates (int): Widths of each group, in equal steps up to the full
            one. Defaults to 64.

    Raises:
        ValueError: If there are less than two candidates.
    """

    def __init__(
        self, criterion: Criterion | None = None, candidates: int = 64
    ) -> None:
        if type(candidates) is not int or candidates < 2:
            raise ValueError(
                f'candidates={candidates!r}: expected a whole number of '
                'widths of each group, at least 2'
            )
        self.criterion: Criterion = criterion or Fisher()
        self.candidates = candidates

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """See :meth:`mmgfp.search.search.Search.start`."""
        budget = without_unscored(budget, net, scores)
        choices = budget.choices(net, self.candidates)
        worth = [
            kept_importance(part)[widths - 1]
            if len(widths) > 1
            else np.zeros(1)
            for part, widths in zip(scores, choices)
        ]
        self._candidates = Candidates(net, budget, choices, worth)

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`.

        The better one of the searches from what greedy pruning leaves, and
        from equal ratios.
        """
        table = self._candidates
        starts = table.fit(table.last), table.fit(table.uniform())
        found = [self._improved(start) for start in starts]
        return table.widths(max(found, key=table.value))

    def _improved(self, chosen: np.ndarray) -> np.ndarray:
        """Solve linearised problems until none gains any more.

        After one that gains nothing, the next allows smaller changes of width.
        """
        table, reach = self._candidates, 1.0
        while reach >= _NEAREST:
            found = table.fit(self._solved(chosen, reach))
            gain = table.value(found) - table.value(chosen)
            if gain > _GAP * abs(table.value(chosen)):
                chosen = found
            else:
                reach /= 2
        return chosen

    def _solved(self, chosen: np.ndarray, reach: float) -> np.ndarray:
        """Returns the optimum at costs that are linearised at a choice."""
        groups, indices, worth, change = self._near(chosen, reach)
        table = self._candidates
        one_each = csr_matrix(
            (np.ones(len(groups)), (groups, np.arange(len(groups))))
        )
        solution = milp(
            -worth / (np.ptp(worth) or 1.0),
            integrality=np.ones(len(groups)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(change[None], -np.inf, table.spare(chosen)),
            ],
            options=dict(mip_rel_gap=_GAP, node_limit=_NODES),
        )
        if solution.x is None:  # the bound of nodes came first
            return chosen
        taken = np.flatnonzero(solution.x > 0.5)
        found = chosen.copy()
        found[groups[taken]] = indices[taken]
        return found

    def _near(
        self, chosen: np.ndarray, reach: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All M candidates within reach, one group's after the other's.

        Returns:
            tuple: Their groups and indices; what each is worth, and the cost
            that it adds if it takes the place of the chosen one. (M,) each.
        """
        table = self._candidates
        groups, indices = [], []
        for g, widths in enumerate(table.choices):
            away = abs(widths - widths[chosen[g]]) / widths[-1]
            near = np.flatnonzero(away <= reach)
            groups.append(np.full(len(near), g))
            indices.append(near)
        group, index = np.concatenate(groups), np.concatenate(indices)
        others = np.repeat(chosen[None], len(group), 0)
        others[np.arange(len(group)), group] = index
        worth = np.array([table.worth[g][k] for g, k in zip(group, index)])
        change = table.ratios(others) - table.ratios(chosen)
        return group, index, worth, change


def kept_importance(scores: np.ndarray) -> np.ndarray:
    """Returns what the n units with the greatest scores have, n = 1, 2, ..

    Args:
        scores (np.ndarray): (size,).
    """
    return np.cumsum(np.sort(scores)[::-1])
