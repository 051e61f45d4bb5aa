"""A network that loses units: masked at first, cut out when it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import nn

from ..cost.latency import LatencyTable
from ..cost.model import Calls, CostModel, Metric, record_calls
from ..groups import ChannelGroup, UnitSpace
from ..slimming.history import STAYS, Scores, no_scores
from ..slimming.masks import GradientMask
from ..slimming.positions import (
    axis_sizes,
    cut_groups,
    cut_units,
    kept_positions,
)
from ..slimming.structure import Structure
from ..slimming.surgery import Keep, cut_model, cut_optimizer
from ..tracing.finder import find_groups

Chosen = Sequence[np.ndarray]  # per group the units


class Prunable:
    """What searches are given: a network, its units and its cost.

    Args:
        model (nn.Module): The network, bare (not wrapped for DDP).
        groups (Sequence[ChannelGroup]): From
            :func:`mmgfp.tracing.finder.find_groups` on the unpruned network,
            also if this one is slim; frozen ones are left alone.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        structure (Structure, optional): What the network has lost before.
        cut_to (int): Masked channels are cut out once the rest of a group is
            a multiple of this; 0 for never, until :meth:`cut` is called.
            Defaults to 1: cut at once.
        latency (LatencyTable, optional): Of the unpruned network; makes
            latency a metric.

    Attributes:
        units (UnitSpace): Of the groups that can be pruned, with those that
            are masked.
        masked (list[np.ndarray]): Per group, (size,), whether each is masked.
        originals (list[int]): Units each group had in the unpruned network.
        cost_before (dict): Cost of the unpruned network, by metric.
        cost_model (CostModel): Counts without what was taken.
        history (Scores): The last score of every unit, and when it went.
        cuts (int): How often channels were cut out.
        on_cut (list[Callable]): Called with what stays before a cut.

    Raises:
        ValueError: If there is no prunable group, or the structure does not
            fit the groups.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        calls: Calls,
        structure: Structure | None = None,
        cut_to: int = 1,
        latency: LatencyTable | None = None,
    ) -> None:
        self.model = model
        self.cut_to = cut_to
        self.cuts = 0
        self.on_cut: list[Callable[[Keep], None]] = []
        prunable = [group for group in groups if not group.frozen]
        if not prunable:
            raise ValueError(
                'no channel group can be pruned: ' + _why_frozen(groups)
            )
        self.originals = [group.size for group in prunable]
        self.units = UnitSpace(prunable)
        if structure is not None:
            self.units = self._left_by(structure)
        self._structure = structure or Structure({})
        known = dict(structure.cost_before) if structure else {}
        self.cost_model = CostModel(
            model, self.units.groups, calls, latency, known.get('acts')
        )
        before = known or self.cost_model.total()
        if latency is not None:
            before['latency'] = latency.full
        # what cannot be counted any more, as latency without its table, is
        # not followed further
        self.cost_before = {metric: before[metric] for metric in self.cost()}
        self.history = self._known_history()
        self.masked = [np.zeros(size, bool) for size in self.units.sizes]
        self._mask = GradientMask(model)

    @classmethod
    def find(
        cls,
        model: nn.Module,
        run: Callable[[nn.Module], Any],
        images: int,
        train: Callable[[nn.Module], Any] | None = None,
        **settings: Any,
    ) -> Prunable:
        """Find the channel groups of a network and count its cost.

        Args:
            model (nn.Module): The unpruned network.
            run (Callable): Runs it on demo images, the same in every call.
            images (int): How many these are.
            train (Callable, optional): Computes its losses on demo images.
            **settings: ``cut_to`` and ``latency``.
        """
        groups = find_groups(model, run, images, train)
        was_training = model.training
        calls = record_calls(model.eval(), lambda: run(model), images)
        model.train(was_training)
        return cls(model, groups, calls, **settings)

    def _left_by(self, structure: Structure) -> UnitSpace:
        """The units as they are in the slim network.

        They come from those of the unpruned one, not from the slim network
        itself, so that names and order stay the same whatever went.
        """
        groups = self.units.groups
        sizes = {
            **axis_sizes(self.model, groups),
            **{key: axis.size for key, axis in structure.axes.items()},
        }
        cut = cut_units(groups, structure)
        return UnitSpace(
            cut_groups(groups, cut, structure.keep, sizes),
            _without(self.units.numbers, cut),
        )

    def _known_history(self) -> Scores:
        """The record so far; of groups that are not in it nothing is known."""
        history = self._structure.scores or Scores('none', {})
        groups = {}
        for group, numbers, size in zip(
            self.units.groups, self.units.numbers, self.originals
        ):
            there = np.isin(np.arange(size), numbers)
            known = history.groups.get(group.name)
            if known is None or not ((known.removed == STAYS) == there).all():
                known = no_scores(group.producers, there)
            groups[group.name] = known
        return replace(history, groups=groups)

    # -- cost -------------------------------------------------------------

    def cost(self) -> dict[str, float]:
        """``flops``, ``params`` and ``acts`` without what is masked."""
        return self.cost_model.total()

    def ratio(self, metric: Metric) -> float:
        """Remaining share of a metric, 1 for the unpruned network."""
        return self.ratios()[metric]

    def ratios(self, cut: np.ndarray | None = None) -> dict[str, float]:
        """Remaining share of every metric.

        Args:
            cut (np.ndarray, optional): (G,) numbers of further units of each
                group that count as cut.
        """
        cost = self.cost() if cut is None else self.cost_model.after_cut(cut)
        return {m: cost[m] / self.cost_before[m] for m in cost}

    def saved(self, metric: Metric | str) -> np.ndarray:
        """What one unit of each group saves now, (G,); 1 for 'none'."""
        if metric == 'none':
            return np.ones(len(self.masked))
        return self.cost_model.marginal(metric)  # type: ignore[arg-type]

    def take(self, group: int, count: int) -> None:
        """Count units of a group as gone, before they are masked."""
        cut = np.zeros(len(self.masked))
        cut[group] = count
        self.cost_model.cut(cut)

    # -- masking and cutting ------------------------------------------------

    def mask(
        self,
        chosen: Chosen,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> list[np.ndarray] | None:
        """Mask units that were taken, and cut out what is due.

        Args:
            chosen (Sequence[np.ndarray]): Per group the units.
            optimizers (Sequence[Optimizer]): Their state is sliced too.
            copies (Sequence[nn.Module]): Copies of the network (EMA) that
                lose the same channels.

        Returns:
            list[np.ndarray] | None: See :meth:`cut`.
        """
        for masked, units in zip(self.masked, chosen):
            masked[units] = True
        return self._cut(self._cuttable(), optimizers, copies)

    def cut(
        self,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> list[np.ndarray] | None:
        """Cut out all that is masked, as before saving the network.

        Args:
            optimizers (Sequence[Optimizer]): See :meth:`mask`.
            copies (Sequence[nn.Module]): See :meth:`mask`.

        Returns:
            list[np.ndarray] | None: Per group, whether each unit that was
            there is left; None if nothing was cut.
        """
        return self._cut(self._masked_units(), optimizers, copies)

    def _cuttable(self) -> list[np.ndarray]:
        """Masked units without which the rest is as wide as it may be."""
        cuttable: list[np.ndarray] = []
        for group, units in zip(self.units.groups, self._masked_units()):
            if self.cut_to == 0:
                cuttable.append(units[:0])
                continue
            step = self.cut_to // gcd(self.cut_to, group.width)
            left = group.size - len(units)
            padding = -left % step
            cuttable.append(units[: max(0, len(units) - padding)])
        return cuttable

    def _cut(
        self,
        cut: Chosen,
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
    ) -> list[np.ndarray] | None:
        """Slice the network, its copies and the optimisers' state."""
        self._mask.lift()
        stays = None
        if any(len(units) for units in cut):
            groups = self.units.groups
            sizes = axis_sizes(self.model, groups)
            keep = kept_positions(groups, cut, sizes)
            for optimizer in optimizers:
                cut_optimizer(optimizer, self.model, keep)
            for copy in copies:
                cut_model(copy, keep)
            for follow in self.on_cut:
                follow(keep)
            cut_model(self.model, keep)
            self._structure = replace(
                self._structure, axes=self._structure.compose(keep, sizes)
            )
            stays = [
                np.isin(np.arange(group.size), units, invert=True)
                for group, units in zip(groups, cut)
            ]
            self.units = UnitSpace(
                cut_groups(groups, cut, keep, sizes),
                _without(self.units.numbers, cut),
            )
            self.masked = _without(self.masked, cut)
            self.cuts += 1
        self._mask.put(
            self.units.groups, self._masked_units(), optimizers, copies
        )
        return stays

    def _masked_units(self) -> list[np.ndarray]:
        return [np.flatnonzero(masked) for masked in self.masked]

    # -- what is kept -------------------------------------------------------

    def unmasked(self) -> Keep:
        """Positions that stay of each axis without what is masked."""
        sizes = axis_sizes(self.model, self.units.groups)
        return kept_positions(self.units.groups, self._masked_units(), sizes)

    def structure(
        self, source: str = '', input_shape: Sequence[int] = ()
    ) -> Structure:
        """The structure of the network without what is masked."""
        sizes = axis_sizes(self.model, self.units.groups)
        return replace(
            self._structure,
            axes=self._structure.compose(self.unmasked(), sizes),
            architecture=type(self.model).__name__,
            source=source,
            input_shape=tuple(input_shape),
            cost_before=self.cost_before,
            cost_after=self.cost(),
            scores=self.history if self.history.step else None,
            density={},  # training does not keep single weights at zero
        )


def _why_frozen(groups: Sequence[ChannelGroup]) -> str:
    reasons = sorted({group.frozen for group in groups})
    if not reasons:
        return 'the network has no layer that feeds another one'
    return '; '.join(reasons[:5])


def _without(arrays: Chosen, cut: Chosen) -> list[np.ndarray]:
    return [np.delete(array, units) for array, units in zip(arrays, cut)]
