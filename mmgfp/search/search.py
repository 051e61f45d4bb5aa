"""Interfaces of searches, and cutting a network to their widths.

A search decides how many units of each group stay within a budget. A criterion
decides which units. A search that chooses at once is a :class:`Search`; one
that observes features before is a :class:`FeatureSearch`; one that is trained
with the network is a :class:`TrainedSearch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
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
        criterion (Criterion): Scores the units of each group; units with the
            lowest scores are pruned first.
    """

    criterion: Criterion

    def start(
        self, net: Prunable, budget: Budget, scores: Sequence[np.ndarray]
    ) -> None:
        """Start with a network and the scores of its units.

        Args:
            net (Prunable): The network without masked units.
            budget (Budget): The budget of the search.
            scores (Sequence[np.ndarray]): Scores per group, (size,).

        Raises:
            ValueError: If an argument of the search does not fit them.
        """

    def widths(self) -> np.ndarray:
        """Returns the number of kept units of each group, (G,)."""


@runtime_checkable
class FeatureSearch(Search, Protocol):
    """Searches that observe features in a calibration pass.

    Attributes:
        images (int): Number of images of the pass over all processes.
        batch (int): Smallest number of images in a forward of the pass.
    """

    images: int
    batch: int

    def observing(self) -> AbstractContextManager[None]:
        """Returns the context of the pass, which follows :meth:`start`."""

    def all_reduce(self, reduce: Callable[[Tensor], None]) -> None:
        """Sum the observations over processes, once after the pass.

        Args:
            reduce (Callable): Sums a tensor over processes, in place.
        """


@runtime_checkable
class TrainedSearch(Search, Protocol):
    """Searches that train their own parameters together with the network.

    While attached, the network runs with their current values.
    """

    def attach(self, steps: int) -> None:
        """Start learning for a total of ``steps`` steps."""

    def detach(self) -> None:
        """Remove the search's values from the network."""

    def step(self, gradient: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Learn from a batch.

        Args:
            gradient (Callable): Called with the values of the search; returns
                the gradient of the loss with respect to them.

        Returns:
            dict[str, float]: Values to log.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for resuming."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict` while attached."""


def cut_to_widths(
    net: Prunable,
    search: Search,
    budget: Budget,
    scores: Sequence[np.ndarray],
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    iteration: int = 0,
) -> list[str]:
    """Cut a network to the widths of a search.

    Args:
        net (Prunable): The network without masked units.
        search (Search): The search, started with this network.
        budget (Budget): The budget that it was started with.
        scores (Sequence[np.ndarray]): Scores per group, (size,); the units
            with the greatest scores stay.
        optimizers (Sequence[Optimizer]): Their state is cut, too.
        copies (Sequence[nn.Module]): Copies of the network (EMA) that lose
            the same channels.
        iteration (int): Training iterations so far, for the record.

    Returns:
        list[str]: Names of the groups that lost units and have their smallest
        width now.
    """
    widths = search.widths()
    narrowest = [
        group.name
        for group, width, allowed in zip(
            net.units.groups, widths, budget.choices(net)
        )
        if width == allowed[0] < allowed[-1]
    ]
    chosen = best_units(net.units, widths, np.concatenate(scores))
    numbers = net.units.numbers
    history = replace(
        net.history,
        criterion=type(search.criterion).__name__,
        normalize_by='none',
    )
    net.history = history.after(
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
    return narrowest


def narrowest_line(narrowest: Sequence[str], groups: int) -> str | None:
    """Returns a warning if a fifth of the groups has its smallest width.

    Args:
        narrowest (Sequence[str]): From :func:`cut_to_widths`.
        groups (int): Number of all groups.
    """
    if 5 * len(narrowest) < groups:
        return None
    return (
        f'{len(narrowest)} of {groups} groups have the smallest width that '
        f'min_ratio, min_channels and round_to allow ({narrowest[0]}, ...): '
        'raise min_ratio if accuracy does not recover'
    )
