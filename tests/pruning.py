"""Pruners of networks whose groups and calls are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmgfp import Prunable, Pruner
from mmgfp.cost.model import Calls
from mmgfp.criteria.weights import Weights
from mmgfp.groups import ChannelGroup


class First(Weights):
    """Any units will do: the first ones go first."""

    def of_group(
        self,
        group: ChannelGroup,
        tensors: Mapping[str, torch.Tensor],
        numbers: np.ndarray,
    ) -> np.ndarray:
        return np.zeros(group.size)


def pruner_of(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    calls: Calls,
    normalize_by: str = 'acts',
    floor: Any = None,
    structure: Any = None,
    cut_to: int = 1,
    latency: Any = None,
    criterion: Any = None,
) -> Pruner:
    net = Prunable(model, groups, calls, structure, cut_to, latency)
    return Pruner(net, criterion, normalize_by, floor)


def sums(pruner: Pruner) -> list[np.ndarray]:
    """What a criterion has summed since the last step, by group."""
    everything = np.ones(len(pruner.net.units), bool)
    state = pruner.criterion.state_dict(everything)
    return [part.numpy() for part in state['sums'].values()]


def images_of(pruner: Pruner) -> dict[str, int]:
    """Images that gave a gradient since the last step, by group."""
    return pruner.state_dict()['images']


def drop_batch(pruner: Pruner) -> None:
    """Forget what a forward and a backward have brought."""
    pruner.criterion.end_batch(valid=torch.tensor(False))
