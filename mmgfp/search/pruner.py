"""Greedy removal of the units with the lowest scores.

It needs torch alone. A training loop of any kind ends each batch with
``pruner.criterion.end_batch()`` and calls :meth:`Pruner.prune` at intervals.
With a criterion of weights, one call is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.base import Compensating, Criterion
from ..criteria.fisher import Fisher
from ..slimming.history import Removal
from .compensation import compensate
from .limits import Floor, Limits
from .prunable import Prunable
from .selection import Selector

Normalizer = Literal['acts', 'flops', 'latency', 'none']


class Pruner:
    """Greedy pruning of one network (Group Fisher Pruning, Algorithm 2).

    Args:
        net (Prunable): The network.
        criterion (Criterion, optional): The criterion, which starts to observe
            the network. Defaults to :class:`mmgfp.criteria.fisher.Fisher`.
        normalize_by (str): Scores are divided by the 'acts', 'flops' or
            'latency' that removing a unit saves at that moment, or by nothing
            ('none'). Defaults to 'acts'.
        floor (Floor, optional): Floors of all groups.
        isomorphic (bool): Whether only groups of one kind are compared with
            each other (:func:`mmgfp.search.quotas.group_kinds`). Defaults to
            False.
        ratios (Mapping[str, float], optional): Final ratio of its units that
            a group keeps, by its name. Such groups are compared with no other
            group; :attr:`Floor.min_ratio` does not apply to them.
        compensate (bool): Whether layers that read pruned channels adapt
            their other weights (:mod:`mmgfp.search.compensation`); needs a
            criterion with curvature. Defaults to False.

    Attributes:
        limits (Limits): Limits of each group.
    """

    def __init__(
        self,
        net: Prunable,
        criterion: Criterion | None = None,
        normalize_by: Normalizer = 'acts',
        floor: Floor | None = None,
        isomorphic: bool = False,
        ratios: Mapping[str, float] | None = None,
        compensate: bool = False,
    ) -> None:
        self.net = net
        self.compensate = compensate
        self.criterion: Criterion = criterion or Fisher()
        self.normalize_by = normalize_by
        self.limits = Limits(net, floor or Floor(), isomorphic, ratios or {})
        net.masks.followers.append(self.criterion.cut)
        self.attach()

    def attach(self) -> None:
        """Observe the network (again)."""
        self.criterion.attach(self.net.model, self.net.units)

    def detach(self) -> None:
        """Stop observing the network; the sums stay."""
        self.criterion.detach()

    def scores(self) -> list[np.ndarray]:
        """Returns scores per group, (size,); NaN for groups without.

        With several processes, call ``criterion.all_reduce`` before.
        """
        there = ~np.concatenate(self.net.masked)
        return self.net.units.split(self.criterion.scores(there))

    def unscored(
        self, scores: Sequence[np.ndarray] | None = None
    ) -> list[str]:
        """Returns the names of groups without scores; they are not pruned.

        Args:
            scores (Sequence[np.ndarray], optional): Result of :meth:`scores`,
                if it is known.
        """
        return [
            group.name
            for group, found, masked in zip(
                self.net.units.groups, scores or self.scores(), self.net.masked
            )
            if np.isnan(found[~masked]).all()
        ]

    def prune(
        self,
        done: Callable[[int], bool],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
        reduce: Callable[[Tensor], None] | None = None,
        scores: Sequence[np.ndarray] | None = None,
        agree: Callable[[bytes], None] | None = None,
        iteration: int = 0,
        progress: Callable[[], float] = lambda: 1.0,
    ) -> list[Removal]:
        """Remove the least important units and reset the scores.

        They are masked at once, and cut out as far as ``cut_to`` allows.
        Groups without scores (:meth:`unscored`) are not pruned and keep their
        sums.

        Args:
            done (Callable): Called with the number of removals so far;
                returns whether to stop. ``net.ratio`` is up to date then.
            optimizers (Sequence[Optimizer]): Their state is masked and cut.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same channels.
            reduce (Callable, optional): See :meth:`Criterion.all_reduce`.
            scores (Sequence[np.ndarray], optional): Result of :meth:`scores`,
                if it is known.
            agree (Callable, optional): Called with the choices in bytes;
                raises if those of other processes differ.
            iteration (int): Training iterations so far, for the record.
            progress (Callable): Returns the completed ratio of pruning from
                the start to the target, by ``net.ratio``; groups in
                ``ratios`` lose the same ratio of their units to prune.
                Defaults to 1.

        Returns:
            list[Removal]: Removals in order; empty if no unit can be removed.
        """
        net = self.net
        if reduce is not None:
            self.criterion.all_reduce(reduce)
        there = [np.flatnonzero(~masked) for masked in net.masked]
        every = scores or self.scores()
        scores = [found[units] for found, units in zip(every, there)]
        compared = np.array([not np.isnan(s).all() for s in scores])
        saving = net.saved(self.normalize_by)
        among, removals = self._choose(scores, compared, done, progress)
        chosen = [units[u] for units, u in zip(there, among)]
        numbers = net.units.numbers
        name, by = type(self.criterion).__name__, self.normalize_by
        known = replace(net.history, criterion=name, normalize_by=by)
        net.history = known.after(
            [n[units] for n, units in zip(numbers, there)],
            scores,
            saving,
            [n[units] for n, units in zip(numbers, chosen)],
            compared,
            iteration,
        )
        if agree is not None:
            agree(b'|'.join(units.tobytes() for units in chosen))
        if removals and self.compensate:
            compensate(
                cast(Compensating, self.criterion),
                net.units.groups,
                chosen,
                [net.model, *copies],
            )
        if removals:
            net.masks.mask(chosen, optimizers, copies)
        self.criterion.reset(compared)
        return removals

    def _choose(
        self,
        scores: Sequence[np.ndarray],
        compared: np.ndarray,
        done: Callable[[int], bool],
        progress: Callable[[], float],
    ) -> tuple[list[np.ndarray], list[Removal]]:
        """Returns the units to remove per group, and the order of choices."""
        net = self.net
        selector = Selector(
            scores,
            self.limits.least(),
            self.limits.steps(),
            compared,
            self.limits.quotas,
        )
        taken: list[np.ndarray] = [np.zeros(0, int) for _ in scores]
        removals: list[Removal] = []
        while not done(len(removals)) or (
            # ratios are met as exactly as the target
            progress() >= 1 and selector.is_behind()
        ):
            saving = net.saved(self.normalize_by)
            choice = selector.next(saving, progress())
            if choice is None:
                break
            g, units = choice
            group = net.units.groups[g]
            taken[g] = np.append(taken[g], units)
            removals.append(Removal(group.name, len(units) * group.width))
            net.take(g, len(units))
        return taken, removals

    def cut(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> bool:
        """Cut out all masked units: see :meth:`Masks.cut`.

        Returns:
            bool: Whether units were cut out.
        """
        return self.net.masks.cut(optimizers, copies)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for resuming besides the structure.

        It has plain types and describes the network without masked units.
        """
        stays = ~np.concatenate(self.net.masked)
        name = type(self.criterion).__name__
        return {'criterion': name, **self.criterion.state_dict(stays)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict` on the same slim network.

        Raises:
            ValueError: If groups or criterion differ.
        """
        mine = type(self.criterion).__name__
        # earlier versions had a single criterion
        saved = state.get('criterion', 'Fisher')
        if saved != mine:
            raise ValueError(
                f'the checkpoint was pruned by the criterion {saved}, but the '
                f'config has {mine}: resume with the interrupted config, or '
                'continue with load_from'
            )
        self.criterion.load_state_dict(state)
