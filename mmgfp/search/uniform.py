"""The same ratio for every group, as a baseline of searches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..criteria.base import Criterion
from ..criteria.magnitude import L1
from .budget import Budget
from .candidates import Candidates, without_unscored
from .prunable import Prunable


class Uniform:
    """Every group keeps the same ratio of its units, the largest possible.

    Widths are those of :class:`~mmgfp.search.budget.Budget` nearest to the
    ratio. Groups that keep their width are left out.

    Args:
        order (Criterion, optional): Scores units. Defaults to
            :class:`mmgfp.criteria.magnitude.L1`.
    """

    def __init__(self, order: Criterion | None = None) -> None:
        self.criterion: Criterion = order or L1()  # type: ignore[abstract]

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """See :meth:`mmgfp.search.search.Search.start`."""
        budget = without_unscored(budget, net, scores)
        choices = budget.choices(net)
        self._candidates = Candidates(net, budget, choices, choices)

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`."""
        return self._candidates.widths(self._candidates.uniform())
