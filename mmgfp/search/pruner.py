"""Greedy removal of the units with the least scores.

Needs torch alone. A training loop of any kind ends each batch with
``pruner.criterion.end_batch()`` and calls :meth:`Pruner.prune` every so often;
with a criterion that looks at weights alone one call does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.base import Criterion
from ..criteria.fisher import Fisher
from ..slimming.history import Removal
from .limits import Floor, Limits
from .prunable import Prunable
from .selection import Selector

Normalizer = Literal['acts', 'flops', 'latency', 'none']


class Pruner:
    """Greedy pruning of one network (Group Fisher Pruning, Algorithm 2).

    Args:
        net (Prunable): The network.
        criterion (Criterion, optional): Defaults to
            :class:`mmgfp.criteria.fisher.Fisher`. It observes the network from
            now on.
        normalize_by (str): What scores are divided by: the 'acts', 'flops' or
            'latency' that removing a unit saves now, or 'none'. Defaults to
            'acts'.
        floor (Floor, optional): What must stay of each group.
        isomorphic (bool): Whether only groups of one kind are compared with
            each other (:func:`mmgfp.search.quotas.group_kinds`). Defaults to
            False.
        ratios (Mapping[str, float], optional): Share of its units that a
            group keeps in the end, by its name. Such groups are compared with
            no other; :attr:`Floor.min_ratio` does not hold for them.

    Attributes:
        limits (Limits): What must stay of each group.
    """

    def __init__(
        self,
        net: Prunable,
        criterion: Criterion | None = None,
        normalize_by: Normalizer = 'acts',
        floor: Floor | None = None,
        isomorphic: bool = False,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        self.net = net
        self.criterion: Criterion = criterion or Fisher()
        self.normalize_by = normalize_by
        self.limits = Limits(net, floor or Floor(), isomorphic, ratios or {})
        net.history = replace(net.history, normalize_by=normalize_by)
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

        With several processes, ask after ``criterion.all_reduce``.
        """
        there = ~np.concatenate(self.net.masked)
        return self.net.units.split(self.criterion.scores(there))

    def unscored(
        self, scores: Sequence[np.ndarray] | None = None
    ) -> list[str]:
        """Returns the names of groups without scores; they lose nothing.

        Args:
            scores (Sequence[np.ndarray], optional): From :meth:`scores`,
                where they are known.
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
        Groups without scores (:meth:`unscored`) lose nothing and keep their
        sums.

        Args:
            done (Callable): Called with the number of removals so far;
                returns whether to stop. ``net.ratio`` is up to date then.
            optimizers (Sequence[Optimizer]): Their state is sliced too.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same channels.
            reduce (Callable, optional): See :meth:`Criterion.all_reduce`.
            scores (Sequence[np.ndarray], optional): From :meth:`scores`,
                where they are known.
            agree (Callable, optional): Given the choices in bytes, raises if
                other processes have chosen otherwise.
            iteration (int): Training iterations so far, for the record.
            progress (Callable): Returns the share of the way to the target
                that pruning has gone, by ``net.ratio``; groups in ``ratios``
                go the same share of their way. By default all of it.

        Returns:
            list[Removal]: In order; empty if nothing can be removed.
        """
        net = self.net
        if reduce is not None:
            self.criterion.all_reduce(reduce)
        there = [np.flatnonzero(~masked) for masked in net.masked]
        scores = [
            found[units]
            for found, units in zip(scores or self.scores(), there)
        ]
        compared = np.array([not np.isnan(s).all() for s in scores])
        saving = net.saved(self.normalize_by)
        among, removals = self._choose(scores, compared, done, progress)
        chosen = [units[u] for units, u in zip(there, among)]
        numbers = net.units.numbers
        net.history = net.history.after(
            [n[units] for n, units in zip(numbers, there)],
            scores,
            saving,
            [n[units] for n, units in zip(numbers, chosen)],
            compared,
            iteration,
        )
        if agree is not None:
            agree(b'|'.join(units.tobytes() for units in chosen))
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
        net, groups = self.net, self.net.units.groups
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
            # a ratio holds as exactly as the target
            progress() >= 1 and selector.is_behind()
        ):
            saving = net.saved(self.normalize_by)
            choice = selector.next(saving, progress())
            if choice is None:
                break
            g, units = choice
            group = groups[g]
            taken[g] = np.append(taken[g], units)
            removals.append(Removal(group.name, len(units) * group.width))
            net.take(g, len(units))
        return taken, removals

    def cut(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> bool:
        """Cut out all that is masked: see :meth:`Masks.cut`.

        Returns:
            bool: Whether there was anything.
        """
        return self.net.masks.cut(optimizers, copies)

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming needs besides the structure, in plain types.

        That of the network without what is masked.
        """
        stays = ~np.concatenate(self.net.masked)
        name = type(self.criterion).__name__
        return {'criterion': name, **self.criterion.state_dict(stays)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` on the same slim network.

        Raises:
            ValueError: If it is of other groups or another criterion.
        """
        mine = type(self.criterion).__name__
        # earlier versions knew one criterion
        saved = state.get('criterion', 'Fisher')
        if saved != mine:
            raise ValueError(
                f'the checkpoint was pruned by the criterion {saved}, and the '
                f'config says {mine}: resume with the config that was '
                'interrupted, or prune on with load_from'
            )
        self.criterion.load_state_dict(state)
