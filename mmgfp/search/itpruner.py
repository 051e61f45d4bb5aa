"""Widths by redundancy of features (ITPruner, arXiv 2108.08532).

From the paper: the redundancy of a group is the sum of its normalised HSIC
with all others, divided by that of all groups. Its importance is
``exp(-beta * redundancy)``. The ratios ``x`` of kept units maximise
``sum_i importance_i * x_i`` such that a cost that is quadratic in ``x`` meets
the target. The units with the largest absolute weights stay.

Ours: features are the inputs of consumers in evaluation mode, and HSIC is an
unbiased estimate (:mod:`mmgfp.search.features`); the default of ``beta``; the
exact cost of the traced network; several starts, because the programme is not
convex; rounded widths that meet the exact target; and ``least``. In the
optimum of the programme nearly all groups are at a bound. Without a floor,
groups of many layers, such as the outputs of ResNet-50's stages, keep a single
channel.

The widths printed in the paper are no optimum. Those of ResNet-50 and
MobileNetV1 are, up to rounding, the point where SLSQP first meets the target
from full widths with all importances zero. Importances of exp(-2000 / 37), the
paper's for ResNet-50, give the same point.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from torch import Tensor

from ..cost.polynomial import Cost
from ..criteria.base import Criterion
from ..criteria.magnitude import L1
from .budget import Budget
from .candidates import Candidates, is_number, without_unscored
from .features import LEAST_IMAGES, Features
from .prunable import Prunable

# Over the number of groups, the paper's beta is 17 for MobileNetV1, 54 for
# ResNet-50, 20 for ResNet-20, 17 for ResNet-56, 18 for VGG-16 and 250 for
# MobileNetV2. Solved to the optimum, such importances leave all groups but the
# least redundant ones at their bounds. With 2, a group of half the mean
# redundancy is 7 times as important as one of 1.5 times the mean; costs of
# groups differ about as much.
_BETA = 2

_METRICS = ('flops', 'acts', 'params')


class ITPruner:
    """Keeps groups wide whose features are least redundant.

    Args:
        beta (float, optional): Factor of the redundancy. Defaults to twice
            the number of groups, as redundancies are about 1 / groups.
        images (int): Number of images whose features are compared. Defaults
            to 100.
        order (Criterion, optional): Scores units. Defaults to
            :class:`mmgfp.criteria.magnitude.L1`.
        least (float): Smallest width of every group, as a ratio of its width
            in a network that meets the target with equal ratios of all
            groups. Defaults to 0.5; 0 as in the paper.

    Attributes:
        batch (int): See :class:`mmgfp.search.search.FeatureSearch`.
        unseen (list[str]): Groups without features; they keep their width.

    Raises:
        ValueError: If an argument is invalid.
    """

    batch = 8  # estimates from four images have a large variance

    def __init__(
        self,
        beta: float | None = None,
        images: int = 100,
        order: Criterion | None = None,
        least: float = 0.5,
    ) -> None:
        if beta is not None and not (is_number(beta) and 0 <= beta < np.inf):
            raise ValueError(f'beta={beta!r}: expected a number, at least 0')
        if type(images) is not int or images < LEAST_IMAGES:
            raise ValueError(
                f'ITPruner: images={images!r}: expected a whole number, '
                f'at least {LEAST_IMAGES}'
            )
        if not (is_number(least) and 0 <= least <= 1):
            raise ValueError(
                f'least={least!r}: expected a ratio, at least 0 and at most 1'
            )
        self.criterion: Criterion = order or L1()  # type: ignore[abstract]
        self.beta = beta
        self.images = images
        self.least = least
        self.unseen: list[str] = []

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """See :meth:`mmgfp.search.search.Search.start`."""
        if budget.metric not in _METRICS:
            raise ValueError(
                f'ITPruner needs a target that is a polynomial in the widths, '
                f'one of {", ".join(_METRICS)}; got {budget.metric!r}. For '
                f'latency use Knapsack or DCSS'
            )
        self._net = net
        self._budget = without_unscored(budget, net, scores)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """See :meth:`mmgfp.search.search.FeatureSearch.observing`."""
        self._features = Features(self._net.model, self._net.units)
        try:
            yield
        finally:
            self._features.detach()

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """See :meth:`mmgfp.search.search.FeatureSearch.all_reduce`."""
        self._features.all_reduce(reduce)

    def importance(self) -> np.ndarray:
        """Returns the importance of each group, (G,), 1 for the greatest.

        NaN for groups without features.

        Raises:
            ValueError: If no group has any.
        """
        common = self._features.nhsic()
        np.fill_diagonal(common, np.where(common.diagonal() > 0, 0, np.nan))
        seen = ~np.isnan(common.diagonal())
        if not seen.any():
            raise ValueError(
                'ITPruner: the features of all groups are the same for all '
                f'{self._features.images} images. Expected a trained network '
                'and images that differ'
            )
        redundancy = np.where(seen, np.nansum(common, 1), np.nan)
        if redundancy[seen].any():  # if not, all are independent
            redundancy /= redundancy[seen].sum()
        beta = _BETA * seen.sum() if self.beta is None else self.beta
        return np.exp(-beta * (redundancy - redundancy[seen].min()))

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`.

        Raises:
            ValueError: If there are no features, or groups without features
                keep the cost above the budget.
        """
        if not self._features.images:
            raise ValueError(
                f'ITPruner has observed no forward of at least {LEAST_IMAGES} '
                'images: expected as many training images for each process'
            )
        importance, budget, net = self.importance(), self._budget, self._net
        missing = np.isnan(importance)
        groups = net.units.groups
        self.unseen = [g.name for g, m in zip(groups, missing) if m]
        if self.unseen:
            warnings.warn(
                f'{len(self.unseen)} groups have no features that differ '
                f'between images, and keep their width: {self.unseen[:5]}',
                stacklevel=2,
            )
            budget = replace(
                budget, fixed=budget.fixed | frozenset(self.unseen)
            )
            budget.check(net)
        return solve(net, budget, np.where(missing, 0, importance), self.least)


def solve(
    net: Prunable, budget: Budget, importance: np.ndarray, least: float
) -> np.ndarray:
    """Returns the widths, (G,), that keep the most importance.

    Args:
        net (Prunable): The network, without masked units.
        budget (Budget): A budget of another metric than latency.
        importance (np.ndarray): (G,) importance of each whole group.
        least (float): See :class:`ITPruner`.
    """
    choices = budget.choices(net)
    uniform = Candidates(net, budget, choices, choices)
    floors = least * uniform.widths(uniform.uniform())
    choices = [c[c >= floor] for c, floor in zip(choices, floors)]
    worth = [i * c / c[-1] for i, c in zip(importance, choices)]
    table = Candidates(net, budget, choices, worth)
    programme = Programme(net, budget, importance)
    lower = np.array([c[0] / c[-1] for c in choices])
    greedy = table.fit(table.last)
    starts = table.last, 0 * table.last, table.uniform(), greedy
    found = [greedy]
    for start in starts:
        x = programme.solve(table.widths(start) / net.units.sizes, lower)
        found.append(table.fit(table.nearest(x * net.units.sizes)))
    return table.widths(max(found, key=table.value))


class Programme:
    """Maximise ``importance . x`` where ``c + l.x + x.Q.x`` meets a budget.

    Args:
        net (Prunable): The network.
        budget (Budget): Its metric is no latency.
        importance (np.ndarray): (G,).
    """

    def __init__(
        self, net: Prunable, budget: Budget, importance: np.ndarray
    ) -> None:
        constant, linear, pairs = Cost(
            net.cost_model, net.units.sizes
        ).quadratic(budget.metric)
        sizes, full = net.units.sizes, net.cost_before[budget.metric]
        self._constant = constant / full
        self._linear = linear.numpy() * sizes / full
        squares = pairs.numpy() * np.outer(sizes, sizes) / full
        self._pairs = (squares + squares.T) / 2
        self._ratio = budget.ratio
        self._importance = importance / (importance.max() or 1.0)

    def cost(self, x: np.ndarray) -> float:
        """Returns the remaining ratio of the cost at ratios of units, (G,)."""
        return float(self._constant + self._linear @ x + x @ self._pairs @ x)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Returns the derivative of :meth:`cost`, (G,)."""
        return self._linear + 2 * self._pairs @ x

    def solve(self, start: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Returns ratios (G,) at or near a local optimum.

        Args:
            start (np.ndarray): (G,) initial ratios.
            lower (np.ndarray): (G,) lower bounds; the upper bounds are 1.
        """
        found = minimize(
            lambda x: -self._importance @ x,
            start,
            jac=lambda x: -self._importance,
            method='SLSQP',
            bounds=[(low, 1.0) for low in lower],
            constraints=[
                dict(
                    type='ineq',
                    fun=lambda x: self._ratio - self.cost(x),
                    jac=lambda x: -self.slope(x),
                )
            ],
            options=dict(maxiter=300, ftol=1e-9),
        )
        # the solver may have failed with NaN
        return np.where(np.isfinite(found.x), found.x, start).clip(lower, 1)
