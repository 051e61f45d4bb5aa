"""Criteria that look at weights alone; no data, no training.

All are means over the layers of a group, divided by the group's mean, so that
groups are comparable: Torch-Pruning's ``reduction='mean'`` and
``normalizer='mean'``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..groups import ChannelGroup, Role
from .base import Weights

_SLICED: tuple[Role, ...] = ('producer', 'consumer', 'grouped', 'affine')


class L1(Weights):
    """Sum of the absolute weights of a unit (Li et al., 2017).

    Those of all layers that lose something with it, as Torch-Pruning's
    ``GroupMagnitudeImportance(p=1)``.
    """

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`."""
        return _mean_of_layers(group, tensors, _SLICED, _power_sum)


class L2(Weights):
    """Sum of the squared weights of a unit, otherwise as :class:`L1`."""

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`."""
        measure = partial(_power_sum, power=2)
        return _mean_of_layers(group, tensors, _SLICED, measure)


class BNScale(Weights):
    """Absolute weights of normalisation layers (Liu et al., 2017).

    Groups without such layers have no score and lose nothing.
    """

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`."""
        return _mean_of_layers(group, tensors, ('affine',), _power_sum)


class FPGM(Weights):
    """Distance of a filter to all others of its layer (He et al., 2019).

    Filters near the geometric median can be replaced by the others.
    """

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray | None:
        """See :meth:`Weights.of_group`."""
        roles: tuple[Role, ...] = ('producer', 'grouped')
        return _mean_of_layers(group, tensors, roles, _distances)


class Random(Weights):
    """Random scores, the same for a unit as long as it is there.

    Args:
        seed (int): Defaults to 0.
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


def _mean_of_layers(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    roles: Sequence[Role],
    measure: Callable[[Tensor], Tensor],
) -> np.ndarray | None:
    """Mean over a group's layers of what is measured on each unit.

    Args:
        group (ChannelGroup): The group.
        tensors (Mapping[str, Tensor]): By name.
        roles (Sequence[str]): Of the layers that count.
        measure (Callable): From a layer's slices, (size, n) with those of a
            unit in a row, to (size,).

    Returns:
        np.ndarray | None: (size,), 1 on average; None without such a layer.
    """
    found = []
    for member in group.members:
        tensor = tensors.get(member.tensor)
        if member.role not in roles or not _is_weight(member.tensor):
            continue
        assert tensor is not None
        slices = tensor.transpose(0, member.axis)[
            torch.from_numpy(member.index)
        ]
        found.append(measure(slices.flatten(1).double()).numpy())
    if not found:
        return None
    means = np.mean(found, 0)
    return means / means.mean() if means.any() else means


def _is_weight(name: str) -> bool:
    """Whether a tensor is no bias and no statistic."""
    return name.rpartition('.')[2] not in (
        *('bias', 'running_mean', 'running_var', 'num_batches_tracked'),
    )


def _power_sum(slices: Tensor, power: int = 1) -> Tensor:
    return slices.abs().pow(power).sum(1)


def _distances(slices: Tensor) -> Tensor:
    return torch.cdist(slices, slices).sum(1)
