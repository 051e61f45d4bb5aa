"""Weights that stay take over from those that are pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..criteria.base import Calibrated, Compensating
from ..groups import ChannelGroup


def compensate(
    criterion: Compensating,
    groups: Sequence[ChannelGroup],
    chosen: Sequence[np.ndarray],
    networks: Sequence[nn.Module],
) -> None:
    """Adapt the layers that read channels which are about to be pruned.

    The weights of their other inputs, and biases, change so that the outputs
    change least (Optimal Brain Surgeon; Hassibi & Stork, NIPS 1992). Layers
    whose curvature was not measured keep their weights.

    Args:
        criterion (Compensating): The criterion, after its calibration pass.
        groups (Sequence[ChannelGroup]): All prunable groups.
        chosen (Sequence[np.ndarray]): Units to prune of each group.
        networks (Sequence[nn.Module]): The network and its averages.
    """
    left_out: list[str] = []
    if criterion.when == 'calibration':
        left_out = cast(Calibrated, criterion).unmeasured()
    gone: dict[str, Tensor] = {}
    for group, units in zip(groups, chosen):
        for member in group.members if len(units) else ():
            name = member.tensor
            if member.role == 'consumer' and member.layer not in left_out:
                if name not in gone:
                    weight = networks[0].get_parameter(name)
                    gone[name] = torch.zeros(weight.shape, dtype=torch.bool)
                index = torch.from_numpy(member.index[units].ravel())
                gone[name].index_fill_(member.axis, index, True)
    change_parameters(networks, criterion.compensated(gone))


def change_parameters(
    networks: Sequence[nn.Module], values: Mapping[str, Tensor]
) -> None:
    """Change parameters of a network, and those of its averages equally.

    Args:
        networks (Sequence[nn.Module]): The network, then its averages.
        values (Mapping[str, Tensor]): New values by name of the parameter.
    """
    with torch.no_grad():
        for name, value in values.items():
            parameter = networks[0].get_parameter(name)
            change = value.to(parameter) - parameter
            for network in networks:
                network.get_parameter(name).add_(change)
