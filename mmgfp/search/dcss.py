"""Differentiable channel sparsity search: widths learnt by gradients.

Of DCSS (arXiv 2010.14714) only the abstract was available: a continuous
relaxation over channel sparsities, weights that candidates share within
filters, and gradients that balance the task with cost. The formulation here
is our interpretation; docs/methods/dcss.md lists our additions.

Each group has K candidate widths ``n_1 < .. < n_K`` with probabilities
``p_k``. A candidate keeps the units with the greatest scores. The mixture of
all candidates in a layer, ``sum_k p_k conv(x[:n_k], W[:, :n_k])``, is
``conv(x, W * q)`` with the tail masses ``q_j = sum_{k: n_k > j} p_k`` of the
j-th unit of the group. So one convolution computes all candidates, and the
expected width is ``sum_j q_j``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ..cost.polynomial import Cost
from ..criteria.base import Criterion
from ..criteria.magnitude import L1
from .budget import Budget
from .candidates import Candidates, is_number, without_unscored
from .gates import Gates, gated_groups
from .prunable import Prunable

# Ratio of the learning steps after which the goal is the target itself.
_ARRIVAL = 0.7

# Ratio after which masses are at the candidates next to the expected widths.
_SETTLED = 0.85

# Ratio of the steps over which gradients are averaged.
_WINDOW = 0.1

# Range of weights of the cost, in units of the slopes of the loss.
_REACH = 1e4

# This number of skipped batches in a row ends the search.
_MAX_SKIPPED = 20

# Number of entries in the record of a search.
_POINTS = 200


class DCSS:
    """Learns the widths of all groups together with the weights.

    The loss is ``task + weight * log(cost)``. By default the weight of the
    cost is adapted in every step so that the expected cost equals a goal,
    which falls from the current cost to the target. Probabilities move
    slowly towards the softmax of the averaged gradient (mirror descent on the
    simplex), so that an improbable width can become probable again.

    Args:
        candidates (int): Widths of each group, in equal steps up to the full
            one. Defaults to 10.
        order (Criterion, optional): Scores units; candidates keep those with
            the greatest scores. Defaults to
            :class:`mmgfp.criteria.magnitude.L1`.
        cost_weight (float, optional): Fixed weight of a cost term
            ``cost / full cost`` instead of the adapted one.
        warmup (float): Ratio of the steps in which widths are not learnt.
            Defaults to 0.1.
        temperature (float): Final temperature; it falls geometrically from 1.
            Defaults to 0.05.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        candidates: int = 10,
        order: Criterion | None = None,
        cost_weight: float | None = None,
        warmup: float = 0.1,
        temperature: float = 0.05,
    ) -> None:
        if type(candidates) is not int or candidates < 2:
            raise ValueError(
                f'candidates={candidates!r}: expected a whole number of '
                'widths of each group, at least 2'
            )
        if cost_weight is not None and not (
            is_number(cost_weight) and 0 < cost_weight < math.inf
        ):
            raise ValueError(
                f'cost_weight={cost_weight!r}: expected a number, more than 0'
            )
        if not (is_number(warmup) and 0 <= warmup < 1):
            raise ValueError(
                f'warmup={warmup!r}: expected a ratio of the steps, at least '
                '0 and less than 1'
            )
        if not (is_number(temperature) and 0 < temperature <= 1):
            raise ValueError(
                f'temperature={temperature!r}: expected a number, more than '
                '0 and at most 1, where it starts'
            )
        self.candidates = candidates
        self.criterion: Criterion = order or L1()  # type: ignore[abstract]
        self.cost_weight = cost_weight
        self.warmup = warmup
        self.temperature = temperature
        self.ungated: list[str] = []  # groups that keep their width
        #: (step, expected ratio of each group's units) in order
        self.course: list[tuple[int, list[float]]] = []
        self._gates: Gates | None = None
        self._weight = 0.0  # of the cost, in units of the slopes' spread
        self._done = self._steps = self._learnt = 0
        self._skipped = 0  # gradients in a row that are not finite

    # -- start ------------------------------------------------------------

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """See :meth:`mmgfp.search.search.Search.start`.

        Groups whose consumers are all grouped convolutions keep their width
        (:attr:`ungated`).
        """
        gated = gated_groups(net.units, grouped=False)
        self.ungated = [
            group.name
            for group in net.units.groups
            if group.name not in gated | budget.fixed
        ]
        self._net = net
        self._budget = without_unscored(
            replace(budget, fixed=budget.fixed | frozenset(self.ungated)),
            net,
            scores,
            self.candidates,
        )
        choices = self._budget.choices(net, self.candidates)
        # the importance of widths is not known yet
        self._table = Candidates(net, self._budget, choices, choices)
        self._cost = Cost(net.cost_model, net.units.sizes)
        self._full = net.cost_before[budget.metric]
        self._start = budget.cost(net, net.units.sizes)
        shape = (len(choices), max(map(len, choices)))
        self._widths = torch.zeros(shape, dtype=torch.float64)
        self._there = torch.zeros(shape, dtype=torch.bool)
        first = []
        for g, (widths, found) in enumerate(zip(choices, scores)):
            self._widths[g, : len(widths)] = torch.from_numpy(widths)
            self._there[g, : len(widths)] = True
            # 0 for the unit with the greatest score
            rank = np.empty(len(found), int)
            rank[np.argsort(-found, kind='stable')] = np.arange(len(found))
            first.append(np.searchsorted(widths, rank, side='right'))
        # for each unit, its group and the first candidate that keeps it
        self._group = torch.from_numpy(net.units.group_of)
        self._first = torch.from_numpy(np.concatenate(first))
        # averaged gradient of the loss by the probabilities
        self._slopes = torch.zeros(shape, dtype=torch.float64)
        # the network starts at its full widths
        last = self._there.sum(1, keepdim=True) - 1
        self._probabilities = torch.zeros(shape, dtype=torch.float64)
        self._probabilities.scatter_(1, last, 1.0)
        self._values = self._gates_now()

    def attach(self, steps: int) -> None:
        """See :meth:`mmgfp.search.search.TrainedSearch.attach`."""
        self._steps = steps
        self._gates = Gates(
            self._net.model,
            self._net.units,
            lambda: self._values,
            grouped=False,
        )

    def detach(self) -> None:
        """See :meth:`mmgfp.search.search.TrainedSearch.detach`."""
        if self._gates is not None:
            self._gates.detach()
            self._gates = None

    # -- gates ---------------------------------------------------------------

    def _progress(self) -> float:
        """Returns the completed ratio of the learning steps."""
        done = self._done / max(1, self._steps) - self.warmup
        return min(1.0, max(0.0, done / (1 - self.warmup)))

    def _temperature(self) -> float:
        return self.temperature ** self._progress()

    def probabilities(self) -> Tensor:
        """Returns (G, K) probabilities of the candidates; padded with 0.

        Near the end they move to the two candidates next to each expected
        width, which stays the same: the network gets used to widths of its
        own before it is cut.
        """
        late = (self._progress() - _ARRIVAL) / (_SETTLED - _ARRIVAL)
        share = min(1.0, max(0.0, late))
        return self._probabilities.lerp(self._next_to_expected(), share)

    def _next_to_expected(self) -> Tensor:
        """Returns those of at most two candidates, with equal means."""
        mean = self.expected_widths()[:, None]
        widths = self._widths.masked_fill(~self._there, math.inf)
        last = self._there.sum(1, keepdim=True) - 1
        upper = (widths < mean).sum(1, keepdim=True).minimum(last)
        lower = (upper - 1).clamp(min=0)
        low, high = widths.gather(1, lower), widths.gather(1, upper)
        share = (mean - low) / (high - low).clamp(min=1)
        share = share.clamp(0, 1).where(lower < upper, torch.ones_like(share))
        found = torch.zeros_like(widths)
        found.scatter_add_(1, lower, 1 - share)
        return found.scatter_add_(1, upper, share)

    def _tail_masses(self) -> Tensor:
        """Returns (U,) the mass of the candidates that keep each unit."""
        tail = self.probabilities().flip(1).cumsum(1).flip(1)
        return tail[self._group, self._first]

    def _gates_now(self) -> Tensor:
        """Returns the tail masses in the device and type of the network."""
        parameter = next(self._net.model.parameters())
        return self._tail_masses().to(parameter.device, torch.float32)

    def expected_widths(self) -> Tensor:
        """Returns (G,) the mean number of units of each group."""
        return (self._probabilities * self._widths).sum(1)

    def expected_cost(self) -> float:
        """Returns the ratio of the metric at the expected widths."""
        cost = self._cost(self.expected_widths())[self._budget.metric]
        return float(cost) / self._full

    # -- learning -----------------------------------------------------------

    def step(self, gradient: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """See :meth:`mmgfp.search.search.TrainedSearch.step`.

        Raises:
            ValueError: If a fixed ``cost_weight`` gives every group its least
                width.
        """
        if self._done >= self.warmup * self._steps:
            self._learn(gradient)
        self._done += 1
        self._values = self._gates_now()
        pause = max(1, self._steps // _POINTS)
        if self._done % pause == 0 or self._done == self._steps:
            full = self._widths.max(1).values
            ratios = (self.expected_widths() / full).tolist()
            self.course.append((self._done, ratios))
        metric = self._budget.metric
        return {
            metric: float(self._table.ratios(self._nearest())),
            f'expected_{metric}': self.expected_cost(),
            'cost_weight': self._weight,
            'temperature': self._temperature(),
        }

    def _learn(self, gradient: Callable[[Tensor], Tensor]) -> None:
        self._values = self._values.requires_grad_()
        slope = gradient(self._values).detach().cpu().double()
        if not slope.isfinite().all():  # skipped, as by a loss scaler
            self._skipped += 1
            if self._skipped == _MAX_SKIPPED:
                raise ValueError(
                    f'the gradients of {_MAX_SKIPPED} search batches in a row '
                    'are not finite, so the search learns nothing: lower the '
                    'learning rate, or look for images with an infinite loss'
                )
            return
        self._skipped = 0
        slope = self._without_scale(slope)
        # a candidate adds to the gates of all units that it keeps
        by_first = torch.zeros_like(self._slopes)
        by_first.index_put_((self._group, self._first), slope, accumulate=True)
        new = by_first.cumsum(1)
        self._learnt += 1
        rate = max(1 / self._learnt, 1 / (1 + _WINDOW * self._steps))
        self._slopes += rate * (new - self._slopes)
        self._follow()

    def _without_scale(self, slope: Tensor) -> Tensor:
        """Returns slopes (U,) without the gain of scaling groups down.

        On the images of the search, trained networks are too confident, and
        smaller outputs correct that. Weights can do so without any pruning,
        so this gain of all gates of a group together says nothing about its
        width. In front of batch norms it is zero.
        """
        gates = self._values.detach().cpu().double()
        zeros = torch.zeros(len(self._widths), dtype=torch.float64)
        gain = zeros.index_add(0, self._group, slope * gates).clamp(min=0)
        mass = zeros.index_add(0, self._group, gates).clamp(min=1e-9)
        return slope - (gain / mass)[self._group]

    def _follow(self) -> None:
        """Move probabilities by the slopes of the loss and of the cost."""
        before = self._probabilities
        mean = (self._slopes * self._there).sum(1) / self._there.sum(1)
        spread = (self._slopes - mean[:, None])[self._there].std()
        task = self._slopes / spread.clamp(min=1e-30)
        widths = self.expected_widths()
        cost, by_width = self._cost_and_slopes(widths)
        costs = by_width[:, None] * self._widths / cost
        if self.cost_weight is None:
            self._weight = self._solved(before, task, costs)
        else:  # of the cost itself, not of its logarithm
            self._weight = float(
                self.cost_weight * cost / spread.clamp(min=1e-30)
            )
        self._put(before, task, costs, self._weight)
        if self.cost_weight is not None and not self._nearest().any():
            raise ValueError(
                f'cost_weight={self.cost_weight} dominates the loss: every '
                'group has its smallest width. Lower it, or omit it for an '
                'adapted weight'
            )

    def _cost_and_slopes(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ratio of the cost, (), and its slope per unit, (G,).

        Latency grows in stairs, which are flat between their steps. Its slope
        is that of the line to the smallest candidate.
        """
        if self._budget.metric != 'latency':
            widths = widths.requires_grad_()
            cost = self._cost(widths)[self._budget.metric] / self._full
            (slopes,) = torch.autograd.grad(cost, widths)
            return cost.detach(), slopes
        least = self._widths[:, 0]
        others = widths.repeat(len(widths), 1)
        others.diagonal().copy_(least)
        cost, *narrower = (
            self._cost(torch.cat([widths[None], others]))['latency']
            / self._full
        )
        saved = cost - torch.stack(narrower)
        return cost, saved / (widths - least).clamp(min=1e-6)

    def _put(
        self, before: Tensor, task: Tensor, costs: Tensor, weight: float
    ) -> None:
        """Move probabilities towards the softmax of the slopes.

        Slopes are valid near the current widths. They grow for a group that
        has become too narrow, so its width increases again.
        """
        logits = -(task + weight * costs) / self._temperature()
        wanted = logits.masked_fill(~self._there, -math.inf).softmax(1)
        rate = 1 / (1 + _WINDOW * self._steps)
        self._probabilities = before + rate * (wanted - before)

    def _solved(self, before: Tensor, task: Tensor, costs: Tensor) -> float:
        """Returns the weight at which the expected cost equals the goal."""

        def above(weight: float) -> float:
            self._put(before, task, costs, weight)
            return self.expected_cost() - self._goal()

        # negative weights increase widths
        reach = _REACH * max(1.0, float(task.abs().max()))
        if above(-reach) <= 0:
            return -reach
        if above(reach) >= 0:
            return reach
        return float(brentq(above, -reach, reach, rtol=1e-6))

    def _goal(self) -> float:
        """Returns the expected ratio of the cost at the current step."""
        way = min(1.0, self._progress() / _ARRIVAL)
        return self._start * (self._budget.ratio / self._start) ** way

    # -- widths -------------------------------------------------------------

    def _nearest(self) -> np.ndarray:
        """Returns the indices of the nearest candidates, (G,)."""
        return self._table.nearest(self.expected_widths().numpy())

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`.

        The candidates nearest to the expected widths are reduced to meet the
        budget by moves with the smallest distance per cost. The rest of the
        budget is used in the same way.

        Raises:
            ValueError: If no gradient was finite.
        """
        if self._skipped and not self._learnt:
            raise ValueError(
                f'none of the gradients of {self._skipped} search batches is '
                'finite, so the search has learnt nothing: train longer, or '
                'look for images with an infinite loss'
            )
        worth = [
            -(((widths - expected) / widths[-1]) ** 2)
            for widths, expected in zip(
                self._table.choices, self.expected_widths().tolist()
            )
        ]
        table = Candidates(self._net, self._budget, self._table.choices, worth)
        return table.widths(table.fit(self._nearest(), spend=True))

    # -- resuming -------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`mmgfp.search.search.TrainedSearch.state_dict`."""
        return {
            'probabilities': self._probabilities,
            'slopes': self._slopes.clone(),
            'weight': self._weight,
            'done': self._done,
            'learnt': self._learnt,
            'skipped': self._skipped,
            'course': [list(point) for point in self.course],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`mmgfp.search.search.TrainedSearch.load_state_dict`.

        Raises:
            ValueError: If its groups or candidates differ.
        """
        found = state['probabilities']
        if found.shape != self._probabilities.shape:
            raise ValueError(
                f'the checkpoint holds a search of {tuple(found.shape)} '
                f'candidates, expected {tuple(self._probabilities.shape)}: '
                'resume with the config that was interrupted'
            )
        # a runner may have put the checkpoint on another device
        self._probabilities = found.cpu()
        self._slopes = state['slopes'].cpu()
        self._weight = state['weight']
        self._done, self._learnt = state['done'], state['learnt']
        self._skipped = state.get('skipped', 0)  # older checkpoints
        self.course = [(step, ratios) for step, ratios in state['course']]
        self._values = self._gates_now()
