"""Differentiable channel sparsity search: widths learnt by gradients.

Of DCSS (arXiv 2010.14714) only the abstract was available: a continuous
relaxation over channel sparsities, weights that candidates share within
filters, and gradients that balance the task with cost. The formulation here
is our reading of it; docs/methods/dcss.md says what is ours.

Each group has K candidate widths ``n_1 < .. < n_K`` with probabilities
``p = softmax(logits / temperature)``. A candidate keeps the units with the
greatest scores. What a layer computes from all candidates at once,
``sum_k p_k conv(x[:n_k], W[:, :n_k])``, is ``conv(x, W * q)`` with the tail
masses ``q_j = sum_{k: n_k > j} p_k`` of the unit that is the j-th of its
group. So one convolution serves all candidates, and the expected width is
``sum_j q_j``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..criteria.base import Criterion
from ..criteria.magnitude import L1
from .budget import Budget
from .gates import Gates, gated_groups
from .prunable import Prunable

# Probability of the full width at first: the network starts nearly whole.
_FULL = 0.9

# The weight of the cost grows by this factor in a step whose network is at
# least _FAR above its goal (in the logarithm of the cost), and falls as fast.
_PACE = 1.1
_FAR = 0.05
_WEIGHTS = (1e-4, 1e4)

# Share of the steps after which the goal is the target itself.
_ARRIVAL = 0.7

# Widths in the record of a search.
_POINTS = 200


class DCSS:
    """Learns the widths of all groups beside the network's weights.

    Args:
        candidates (int): Widths of each group, in equal steps up to the full
            one. Defaults to 10.
        order (Criterion, optional): Scores units; candidates keep those with
            the greatest scores. Defaults to
            :class:`mmgfp.criteria.magnitude.L1`.
        cost_weight (float, optional): Fixed weight of the cost term
            ``cost / full cost`` of the loss. By default the term is the
            logarithm of the cost, and its weight is adapted until the network
            with the most probable widths follows a goal, which falls from the
            full cost to the target.
        warmup (float): Ratio of the steps in which widths are not learnt.
            Defaults to 0.1.
        lr (float, optional): Learning rate of the logits (Adam). By default
            20 over the number of steps, at most 0.1.
        temperature (float): At the end; it falls from 1 geometrically.
            Defaults to 0.1.

    Raises:
        ValueError: If an argument has an impossible value.
    """

    def __init__(
        self,
        candidates: int = 10,
        order: Criterion | None = None,
        cost_weight: float | None = None,
        warmup: float = 0.1,
        lr: float | None = None,
        temperature: float = 0.1,
    ) -> None:
        if type(candidates) is not int or candidates < 2:
            raise ValueError(
                f'candidates={candidates!r}: expected a whole number of '
                'widths of each group, at least 2'
            )
        for name, value in (('cost_weight', cost_weight), ('lr', lr)):
            if value is not None and not value > 0:
                raise ValueError(f'{name}={value!r}: expected more than 0')
        if not 0 <= warmup < 1:
            raise ValueError(
                f'warmup={warmup!r}: expected a ratio of the steps, at least '
                '0 and less than 1'
            )
        if not 0 < temperature <= 1:
            raise ValueError(
                f'temperature={temperature!r}: expected more than 0, at most '
                '1, where it starts'
            )
        self.candidates = candidates
        self.criterion: Criterion = order or L1()  # type: ignore[abstract]
        self.cost_weight = cost_weight
        self.warmup = warmup
        self.lr = lr
        self.temperature = temperature
        self.ungated: list[str] = []  # groups that keep their width
        #: (step, ratio of each group's units that is expected) in order
        self.course: list[tuple[int, list[float]]] = []
        self._gates: Gates | None = None
        self._weight = cost_weight or 1.0
        self._done = self._steps = 0

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
        self._budget = budget = Budget(
            budget.metric,
            budget.ratio,
            budget.floor,
            budget.fixed | frozenset(self.ungated),
        )
        budget.check(net)
        self._choices = budget.choices(net, self.candidates)
        self._cost = net.polynomial()
        self._full = net.cost_before[budget.metric]
        self._start = budget.cost(net, net.units.sizes)
        device = next(net.model.parameters()).device
        most = max(map(len, self._choices))
        logits = torch.full((len(self._choices), most), -math.inf)
        widths = np.zeros((len(self._choices), most))
        first = []
        for g, (choices, found) in enumerate(zip(self._choices, scores)):
            count = len(choices)
            widths[g, :count] = choices
            logits[g, : count - 1] = 0
            others = max(1, count - 1)
            logits[g, count - 1] = math.log(_FULL / (1 - _FULL) * others)
            # 0 for the unit with the greatest score
            rank = np.empty(len(found), int)
            rank[np.argsort(-found, kind='stable')] = np.arange(len(found))
            first.append(np.searchsorted(choices, rank, side='right'))
        self._widths = torch.from_numpy(widths).to(device)
        self._logits = logits.to(device).requires_grad_()
        # for each unit, its group and the first candidate that keeps it
        self._group = torch.from_numpy(net.units.group_of).to(device)
        self._first = torch.from_numpy(np.concatenate(first)).to(device)
        self._values = self._tail_masses().detach()

    def attach(self, steps: int) -> None:
        """See :meth:`mmgfp.search.search.TrainedSearch.attach`."""
        self._steps = steps
        lr = self.lr or min(0.1, 20 / steps)
        self._optimizer = torch.optim.Adam(
            [self._logits], lr=lr, betas=(0.5, 0.999)
        )
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

    # -- what the network runs with -----------------------------------------

    def _progress(self) -> float:
        """Ratio of the steps with learning that are done."""
        done = self._done / max(1, self._steps) - self.warmup
        return min(1.0, max(0.0, done / (1 - self.warmup)))

    def _temperature(self) -> float:
        return self.temperature ** self._progress()

    def probabilities(self) -> Tensor:
        """Returns (G, K) probabilities of the candidates; padded with 0."""
        return (self._logits / self._temperature()).softmax(1)

    def _tail_masses(self) -> Tensor:
        """Returns (U,) the mass of the candidates that keep each unit."""
        tail = self.probabilities().flip(1).cumsum(1).flip(1)
        return tail[self._group, self._first]

    def expected_cost(self) -> Tensor:
        """Returns the expected ratio of the metric, shape ()."""
        widths = (self.probabilities().double() * self._widths).sum(1)
        return self._cost(widths.cpu())[self._budget.metric] / self._full

    # -- learning -----------------------------------------------------------

    def step(self, gradient: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """See :meth:`mmgfp.search.search.TrainedSearch.step`.

        Raises:
            ValueError: If a logit is not finite any more.
        """
        if self._done >= self.warmup * self._steps:
            self._learn(gradient)
        self._done += 1
        self._values = self._tail_masses().detach()
        pause = max(1, self._steps // _POINTS)
        if self._done % pause == 0 or self._done == self._steps:
            self._record()
        metric = self._budget.metric
        return {
            metric: self._ratio(self._most_probable()),
            f'expected_{metric}': float(self.expected_cost().detach()),
            'cost_weight': self._weight,
            'temperature': self._temperature(),
        }

    def _learn(self, gradient: Callable[[Tensor], Tensor]) -> None:
        values = self._tail_masses()
        self._values = values.detach().requires_grad_()
        slope = gradient(self._values)
        self._optimizer.zero_grad()
        if not slope.isfinite().all():  # as a loss scaler would do it
            return
        values.backward(slope.to(values))
        cost = self.expected_cost()
        if self.cost_weight is None:
            cost = cost.log()
        (self._weight * cost).backward()
        self._optimizer.step()
        if self._logits.isnan().any():
            raise ValueError(
                'the logits of the widths are not finite: expected a trained '
                f'network and a smaller lr of the search than {self.lr}'
            )
        if self.cost_weight is None:
            self._adapt()
        elif not any(self._most_probable()):
            raise ValueError(
                f'cost_weight={self.cost_weight} outweighs the loss: every '
                'group has its least width. Lower it, or leave it out to have '
                'it adapted'
            )

    def _goal(self) -> float:
        """The ratio that the network should have by now."""
        way = min(1.0, self._progress() / _ARRIVAL)
        return self._start * (self._budget.ratio / self._start) ** way

    def _adapt(self) -> None:
        """Raise the weight of the cost above the goal, lower it below."""
        ratio = self._ratio(self._most_probable())
        far = math.log(ratio / self._goal()) / _FAR
        self._weight *= _PACE ** min(1.0, max(-1.0, far))
        least, most = _WEIGHTS
        self._weight = min(most, max(least, self._weight))

    def _record(self) -> None:
        expected = (self.probabilities().double() * self._widths).sum(1)
        full = self._widths.max(1).values
        ratios = (expected / full).detach().cpu()
        self.course.append((self._done, ratios.tolist()))

    # -- widths -------------------------------------------------------------

    def _most_probable(self) -> list[int]:
        """Index of each group's most probable candidate."""
        return self._logits.argmax(1).tolist()

    def _ratio(self, chosen: Sequence[int]) -> float:
        widths = [w[k] for w, k in zip(self._choices, chosen)]
        return self._budget.cost(self._net, widths)

    def widths(self) -> np.ndarray:
        """See :meth:`mmgfp.search.search.Search.widths`.

        The most probable candidates. Above the budget, the group that loses
        least of its logarithmic probability per cost saved takes the next
        narrower one, until the budget holds. What is left of the budget is
        spent on the next wider ones, those that lose least first.
        """
        chosen = self._most_probable()
        while self._ratio(chosen) > self._budget.ratio * (1 + 1e-9):
            chosen = self._moved(chosen, -1)
        while (wider := self._moved(chosen, 1)) != chosen:
            chosen = wider
        return np.array([w[k] for w, k in zip(self._choices, chosen)])

    def _moved(self, chosen: list[int], way: int) -> list[int]:
        """One group has its next candidate; the same if none is possible."""
        logits = self._logits.detach().cpu().double()
        now = self._ratio(chosen)
        best, found = math.inf, chosen
        for g, k in enumerate(chosen):
            if not 0 <= k + way < len(self._choices[g]):
                continue
            other = [*chosen[:g], k + way, *chosen[g + 1 :]]
            ratio = self._ratio(other)
            if way > 0 and ratio > self._budget.ratio * (1 + 1e-9):
                continue
            change = max(abs(ratio - now), 1e-12)
            loss = float(logits[g, k] - logits[g, k + way])
            price = loss / change if way < 0 else loss
            if price < best:
                best, found = price, other
        return found

    # -- resuming -------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`mmgfp.search.search.TrainedSearch.state_dict`."""
        return {
            'logits': self._logits.detach().cpu(),
            'optimizer': self._optimizer.state_dict(),
            'weight': self._weight,
            'done': self._done,
            'course': [list(point) for point in self.course],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`mmgfp.search.search.TrainedSearch.load_state_dict`.

        Raises:
            ValueError: If it is of other groups or candidates.
        """
        logits = state['logits']
        if logits.shape != self._logits.shape:
            raise ValueError(
                f'the checkpoint holds a search of {tuple(logits.shape)} '
                f'candidates, expected {tuple(self._logits.shape)}: resume '
                'with the config that was interrupted'
            )
        with torch.no_grad():
            self._logits.copy_(logits)
        self._optimizer.load_state_dict(state['optimizer'])
        self._weight = state['weight']
        self._done = state['done']
        self.course = [(step, ratios) for step, ratios in state['course']]
        self._values = self._tail_masses().detach()
