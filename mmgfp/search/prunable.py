"""The input of searches: a network, its units and its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..cost.latency import LatencyTable
from ..cost.model import Calls, CostModel, Metric, record_calls
from ..groups import ChannelGroup, UnitSpace
from ..slimming.history import STAYS, Scores, no_scores
from ..slimming.masks import Masks
from ..slimming.positions import axis_sizes, cut_space, cut_units
from ..slimming.structure import Structure
from ..tracing.finder import find_groups


class Prunable:
    """A network with prunable units, and its cost.

    Args:
        model (nn.Module): The network without a DDP wrapper.
        groups (Sequence[ChannelGroup]): From
            :func:`mmgfp.tracing.finder.find_groups` on the unpruned network,
            also if this one is slim; frozen groups are not pruned.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        structure (Structure, optional): Structure of a slim network.
        cut_to (int): See :class:`mmgfp.slimming.masks.Masks`. Defaults to 1:
            cut at once.
        latency (LatencyTable, optional): Table of the unpruned network; makes
            latency a metric.

    Attributes:
        masks (Masks): Masks units and cuts them out.
        originals (list[int]): Units of each group in the unpruned network.
        cost_before (dict): Cost of the unpruned network, by metric.
        cost_model (CostModel): Cost without units counted by :meth:`take`.
        history (Scores): Last score and pruning step of every unit.

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
        prunable = [group for group in groups if not group.frozen]
        if not prunable:
            raise ValueError(
                'no channel group can be pruned: ' + _why_frozen(groups)
            )
        self.originals = [group.size for group in prunable]
        units = UnitSpace(prunable)
        if structure is not None:
            units = _left_by(structure, units, model)
        self.masks = Masks(model, units, structure or Structure({}), cut_to)
        known = dict(structure.cost_before) if structure else {}
        self.cost_model = CostModel(
            model, self.units.groups, calls, latency, known.get('acts')
        )
        before = known or self.cost_model.total()
        if latency is not None:
            before['latency'] = latency.full
        # metrics that cannot be counted, such as latency without its table,
        # are left out
        self.cost_before = {metric: before[metric] for metric in self.cost()}
        self.history = self._known_history()

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
            images (int): Number of demo images.
            train (Callable, optional): Computes its losses on demo images.
            **settings: ``cut_to`` and ``latency``.

        Raises:
            ValueError: If no channel group can be pruned.
        """
        groups = find_groups(model, run, images, train)
        was_training = model.training
        calls = record_calls(model.eval(), lambda: run(model), images)
        model.train(was_training)
        return cls(model, groups, calls, **settings)

    @property
    def units(self) -> UnitSpace:
        """Units of the prunable groups, including masked ones."""
        return self.masks.units

    @property
    def masked(self) -> list[np.ndarray]:
        """Per group, (size,), whether each unit is masked."""
        return self.masks.masked

    def _known_history(self) -> Scores:
        """Returns the record so far, with empty entries for other groups."""
        history = self.masks.structure.scores or Scores('none', {})
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

    def cost(self) -> dict[str, float]:
        """Returns the cost without masked units, by metric."""
        return self.cost_model.total()

    def ratio(self, metric: Metric) -> float:
        """Returns the remaining ratio of a metric; 1 if nothing is pruned."""
        return self.ratios()[metric]

    def ratios(self, cut: np.ndarray | None = None) -> dict[str, float]:
        """Returns the remaining ratio of every metric.

        Args:
            cut (np.ndarray, optional): (G,) numbers of further units of each
                group that count as cut.
        """
        cost = self.cost() if cut is None else self.cost_model.after_cut(cut)
        return {m: cost[m] / self.cost_before[m] for m in cost}

    def saved(self, metric: Metric | str) -> np.ndarray:
        """Returns what one unit of each group saves, (G,); 1 for 'none'."""
        if metric == 'none':
            return np.ones(len(self.masked))
        return self.cost_model.marginal(metric)  # type: ignore[arg-type]

    def take(self, group: int, count: int) -> None:
        """Count units of a group as cut, before they are masked."""
        cut = np.zeros(len(self.masked))
        cut[group] = count
        self.cost_model.cut(cut)

    def structure(
        self, source: str = '', input_shape: Sequence[int] = ()
    ) -> Structure:
        """Returns the structure of the network without masked units."""
        sizes = axis_sizes(self.model, self.units.groups)
        structure = self.masks.structure
        return replace(
            structure,
            axes=structure.compose(self.masks.unmasked(), sizes),
            architecture=type(self.model).__name__,
            source=source,
            input_shape=tuple(input_shape),
            cost_before=self.cost_before,
            cost_after=self.cost(),
            scores=self.history if self.history.step else None,
            density={},  # pruning channels does not keep weights at zero
        )


def _why_frozen(groups: Sequence[ChannelGroup]) -> str:
    reasons = sorted({group.frozen for group in groups})
    if not reasons:
        return 'the network has no layer that feeds another one'
    return '; '.join(reasons[:5])


def _left_by(
    structure: Structure, units: UnitSpace, model: nn.Module
) -> UnitSpace:
    """Returns the units of a slim network.

    They are derived from the units of the unpruned network, so that names and
    order do not depend on the cuts.

    Args:
        structure (Structure): Structure of the slim network.
        units (UnitSpace): Units of the unpruned network.
        model (nn.Module): The slim network.
    """
    sizes = {
        **axis_sizes(model, units.groups),
        **{key: axis.size for key, axis in structure.axes.items()},
    }
    cut = cut_units(units.groups, structure)
    return cut_space(units, cut, structure.keep, sizes)
