"""The same ratio for every group, or given ratios: a baseline of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..criteria.base import Criterion
from ..criteria.magnitude import L1
from .budget import Budget
from .candidates import Candidates, without_unscored
from .prunable import Prunable
from .quotas import group_ratios


class Uniform:
    """Every group keeps the same ratio of its units, the largest possible.

    Widths are those of :class:`~mmgfp.search.budget.Budget` nearest to the
    ratio. Groups that keep their width are left out.

    Args:
        order (Criterion, optional): Scores units. Defaults to
            :class:`mmgfp.criteria.magnitude.L1`.
        ratios (Mapping[str, float], optional): Ratios of their units that
            groups keep, by pattern of their layers' names: widths that were
            found for another network. The other groups share one ratio.

    Raises:
        ValueError: If a ratio is no number above 0 and at most 1.
    """

    def __init__(
        self,
        order: Criterion | None = None,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        self.criterion: Criterion = order or L1()  # type: ignore[abstract]
        self.ratios = dict(ratios or {})
        for pattern, ratio in self.ratios.items():
            if (
                not isinstance(ratio, (int, float))
                or isinstance(ratio, bool)
                or not 0 < ratio <= 1
            ):
                raise ValueError(
                    f'ratios[{pattern!r}]={ratio!r}: expected a number above '
                    '0 and at most 1, the ratio of its channels that a layer '
                    'keeps'
                )

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """See :meth:`mmgfp.search.search.Search.start`."""
        budget = without_unscored(budget, net, scores)
        choices = budget.choices(net)
        given = group_ratios(net.units.groups, self.ratios)
        for index, group in enumerate(net.units.groups):
            if group.name in given:
                wanted = given[group.name] * net.originals[index]
                nearest = np.argmin(abs(choices[index] - wanted))
                choices[index] = choices[index][[nearest]]
        least = budget.cost(net, [widths[0] for widths in choices])
        if least > budget.ratio:
            raise ValueError(
                f'target={{{budget.metric!r}: {budget.ratio}}} cannot be '
                f'reached: with ratios={self.ratios} at least {least:.3f} of '
                f'{budget.metric} remains. Raise the target or lower the '
                'ratios.'
            )
        self._candidates = Candidates(net, budget, choices, choices)

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`."""
        return self._candidates.widths(self._candidates.uniform())
