"""Base class of criteria that need weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import ATTRIBUTE, ChannelGroup, UnitSpace
from ..slimming.surgery import named_tensors
from .base import AllRanks, Criterion


class Weights(Criterion):
    """Criteria that use weights alone: they need no data and no training."""

    when = 'weights'

    @abstractmethod
    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """Returns scores of a group's units, (size,); None for no scores.

        Args:
            group (ChannelGroup): Without the units that are masked.
            tensors (Mapping[str, Tensor]): Parameters and buffers by name,
                zeros where other units are masked.
            numbers (np.ndarray): (size,) the units' numbers in the unpruned
                network.
        """

    def attach(self, model: nn.Module, units: UnitSpace) -> None:
        """See :meth:`Criterion.attach`."""
        self._model, self._units = model, units

    def end_batch(
        self,
        scale: float | Tensor = 1.0,
        valid: Tensor | None = None,
        on_all_ranks: AllRanks | None = None,
    ) -> Tensor:
        """See :meth:`Criterion.end_batch`; nothing is summed."""
        device = next(self._model.parameters()).device
        finite = torch.ones((), dtype=torch.bool, device=device)
        if valid is not None:
            finite = finite & valid
        return finite if on_all_ranks is None else on_all_ranks(finite)

    def scores(self, there: np.ndarray) -> np.ndarray:
        """See :meth:`Criterion.scores`."""
        tensors = self._tensors(there)
        found = np.full(len(self._units), np.nan)
        for group, numbers, left, part in zip(
            self._units.groups,
            self._units.numbers,
            self._units.split(there),
            self._units.split(found),
        ):
            if left.any():
                scores = self.of_group(
                    group.restrict(left), tensors, numbers[left]
                )
                part[left] = np.nan if scores is None else scores
        return found

    def _tensors(self, there: np.ndarray) -> dict[str, Tensor]:
        """Returns parameters and buffers with zeros at masked units."""
        tensors = {
            name: tensor.detach().cpu()
            for name, tensor in named_tensors(self._model).items()
        }
        for group, left in zip(self._units.groups, self._units.split(there)):
            for member in group.members if not left.all() else ():
                if member.axis != ATTRIBUTE:
                    gone = torch.from_numpy(member.index[~left].ravel())
                    tensors[member.tensor] = tensors[member.tensor].index_fill(
                        member.axis, gone, 0
                    )
        return tensors

    def cut(self, units: UnitSpace, stays: np.ndarray) -> None:
        """See :meth:`Criterion.cut`."""
        self._units = units

    def state_dict(self, stays: np.ndarray) -> dict[str, Any]:
        """See :meth:`Criterion.state_dict`: empty."""
        return {}
