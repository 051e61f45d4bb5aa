"""What searches of widths are, and cutting a network to what they found.

A search decides how many units of each group stay within a budget. Which
units these are, a criterion decides. One that chooses at once is a
:class:`Search`; one that looks at features first is a :class:`FeatureSearch`;
one that is trained with the network is a :class:`TrainedSearch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.base import Criterion
from .budget import Budget
from .prunable import Prunable
from .subnet import best_units


class Search(Protocol):
    """Chooses a width for each of G groups.

    Attributes:
        criterion (Criterion): Scores the units of each group; those with the
            least scores go first.
    """

    criterion: Criterion

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """Begin with a network and the scores of its units.

        Args:
            net (Prunable): The network; nothing of it is masked.
            budget (Budget): What may remain.
            scores (Sequence[np.ndarray]): Per group, (size,).

        Raises:
            ValueError: If an argument of the search does not fit them.
        """

    def widths(self) -> np.ndarray:
        """Returns (G,) units of each group that stay, within the budget."""


@runtime_checkable
class FeatureSearch(Search, Protocol):
    """Searches that look at features in a calibration pass.

    Attributes:
        images (int): How many the pass has, over all processes.
        batch (int): Least images of each forward of the pass.
    """

    images: int
    batch: int

    def observing(self) -> AbstractContextManager[None]:
        """Context of the pass, between :meth:`start` and :meth:`widths`."""

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum over processes what each has seen, once after the pass.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """


@runtime_checkable
class TrainedSearch(Search, Protocol):
    """Searches that train parameters of their own beside the network.

    While attached, the network runs with what they have learnt so far.
    """

    def attach(self, steps: int) -> None:
        """Start, with this number of steps to come in all."""

    def detach(self) -> None:
        """Run the network without what the search has learnt."""

    def step(self, gradient: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Learn from a batch.

        Args:
            gradient (Callable): Given the values that the network runs with,
                returns the gradient of its loss with respect to them.

        Returns:
            dict[str, float]: What to log.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, attached."""


def cut_to_widths(
    net: Prunable,
    search: Search,
    scores: Sequence[np.ndarray],
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    iteration: int = 0,
) -> None:
    """Cut a network to the widths that a search has found.

    Args:
        net (Prunable): The network; nothing of it is masked.
        search (Search): Has been started with it.
        scores (Sequence[np.ndarray]): Per group, (size,); the units with the
            greatest ones stay.
        optimizers (Sequence[Optimizer]): Their state is sliced too.
        copies (Sequence[nn.Module]): Copies of the network (EMA) that lose
            the same channels.
        iteration (int): Training iterations so far, for the record.
    """
    widths = search.widths()
    chosen = best_units(net.units, widths, np.concatenate(scores))
    numbers = net.units.numbers
    net.history = net.history.after(
        numbers,
        scores,
        np.ones(len(numbers)),
        [n[units] for n, units in zip(numbers, chosen)],
        np.array([not np.isnan(s).any() for s in scores]),
        iteration,
    )
    for group, units in enumerate(chosen):
        net.take(group, len(units))
    net.masks.followers = [search.criterion.cut]
    net.masks.mask(chosen, optimizers, copies)
    search.criterion.reset(np.ones(len(widths), bool))
