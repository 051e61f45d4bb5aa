"""All widths at once: the greatest importance within a budget.

HALP (Shen et al., NeurIPS 2022) prunes by a knapsack problem with importance
as the value of channels and latency as their cost. The form here is ours. Each
group has several candidate widths. The value of a width is the sum of its
greatest scores: a multiple-choice knapsack, solved exactly by HiGHS. The cost
of a layer is bilinear in the widths of its inputs and outputs, so it is
linearised at a choice that just meets the budget: the cost of another width of
a group is the change of the total with all other groups fixed. The solution is
adjusted to the budget by exact costs. It is the next choice if it has more
importance.
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

# Smallest limit of a change of width, as a ratio of a group's units. The
# search ends if a step with this limit gains nothing.
_NEAREST = 1 / 32

# Gap to the optimum of a linearised problem, as a ratio. The number of nodes
# is limited, too; with a limit of time, processes could differ.
_GAP = 1e-5
_NODES = 2000


class Knapsack:
    """Keeps the greatest importance within the budget.

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
        budget = without_unscored(budget, net, scores, self.candidates)
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

        The better result of two searches, which start from greedy pruning and
        from equal ratios.
        """
        table = self._candidates
        starts = table.fit(table.last), table.fit(table.uniform())
        found = [self._improved(start) for start in starts]
        return table.widths(max(found, key=table.value))

    def _improved(self, chosen: np.ndarray) -> np.ndarray:
        """Solve linearised problems as long as the importance grows.

        After a problem without gain, smaller changes of width are allowed.
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
        """Returns the optimum with costs linearised at a choice."""
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
        if solution.x is None:  # stopped by the limit of nodes
            return chosen
        taken = np.flatnonzero(solution.x > 0.5)
        found = chosen.copy()
        found[groups[taken]] = indices[taken]
        return found

    def _near(
        self, chosen: np.ndarray, reach: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns all M candidates within reach, ordered by group.

        Returns:
            tuple: Groups, indices, importance, and change of the cost if the
            candidate replaces the chosen one; (M,) each.
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
    """Returns the sums of the n greatest scores for n = 1, 2, ..., (size,).

    Args:
        scores (np.ndarray): Scores of units, (size,).
    """
    return np.cumsum(np.sort(scores)[::-1])
