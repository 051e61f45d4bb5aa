"""Criteria that use weights alone: they need no data and no training.

Most are means over the layers of a group, divided by the group's mean, so that
groups are comparable. This corresponds to ``reduction='mean'`` and
``normalizer='mean'`` in Torch-Pruning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..groups import ChannelGroup, Role
from ..slimming.surgery import named_tensors
from .weights import Weights


class LayerMeans(Weights):
    """Base class of criteria that average a measure over layers."""

    roles: ClassVar[tuple[Role, ...]]  # of measured layers

    @abstractmethod
    def measure(self, slices: Tensor) -> Tensor:
        """Score units by their weights in one layer.

        Args:
            slices (Tensor): (size, n), one row per unit.

        Returns:
            Tensor: Scores, (size,).
        """

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`; the mean of the scores is 1."""
        found = []
        for member in group.members:
            if member.role in self.roles and _is_weight(member.tensor):
                index = torch.from_numpy(member.index)
                weight = tensors[member.tensor].transpose(0, member.axis)
                slices = weight[index].flatten(1).double()
                found.append(self.measure(slices).numpy())
        if not found:
            return None
        means = np.mean(found, 0)
        return means / means.mean() if means.any() else means


class L1(LayerMeans):
    """Sum of the absolute weights of a unit (Li et al., 2017).

    All layers that lose weights with the unit are included, as in
    ``GroupMagnitudeImportance(p=1)`` of Torch-Pruning.
    """

    roles: ClassVar[tuple[Role, ...]] = (
        *('producer', 'consumer', 'grouped', 'affine'),
    )

    def measure(self, slices: Tensor) -> Tensor:
        """See :meth:`LayerMeans.measure`."""
        return slices.abs().sum(1)


class Magnitude(L1):
    """Absolute value of single weights; scores of units as :class:`L1`."""

    def elements(self, names: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`mmgfp.criteria.base.ElementCriterion.elements`."""
        tensors = named_tensors(self._model)
        return {name: tensors[name].detach().abs() for name in names}


class L2(LayerMeans):
    """Sum of the squared weights of a unit, otherwise as :class:`L1`."""

    roles = L1.roles

    def measure(self, slices: Tensor) -> Tensor:
        """See :meth:`LayerMeans.measure`."""
        return slices.square().sum(1)


class BNScale(L1):
    """Absolute weights of normalisation layers (Liu et al., 2017).

    Groups without such layers have no score and are not pruned.
    """

    roles = ('affine',)


class FPGM(LayerMeans):
    """Distance of a filter to all others of its layer (He et al., 2019).

    Filters near the geometric median can be replaced by the others.
    """

    roles = ('producer', 'grouped')

    def measure(self, slices: Tensor) -> Tensor:
        """See :meth:`LayerMeans.measure`."""
        return torch.cdist(slices, slices).sum(1)


class Random(Weights):
    """Random scores that stay the same for a unit.

    Args:
        seed (int): Seed of the scores. Defaults to 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`."""
        name = crc32(group.name.encode())
        rng = np.random.default_rng([self.seed, name])
        return rng.random(int(numbers.max()) + 1)[numbers]


def _is_weight(name: str) -> bool:
    """Returns whether a tensor is neither bias nor statistic."""
    return name.rpartition('.')[2] not in (
        *('bias', 'running_mean', 'running_var', 'num_batches_tracked'),
    )
