"""Other criteria with mmgfp's channel groups, pace and surgery."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.registry import HOOKS
from torch import Tensor

from mmgfp import FisherPruningHook, GroupFisherPruner
from mmgfp.groups import ChannelGroup
from mmgfp.slimming.surgery import named_tensors

CRITERIA = (
    *('l1', 'bn_scale', 'random'),
    *('taylor', 'batch_fisher', 'running_fisher'),
)

# What a pruning step leaves of the scores before it, with 'running_fisher'.
KEPT = 0.9


class CriterionPruner(GroupFisherPruner):
    """Scores units otherwise; everything else stays.

    ``taylor`` is the first order, |sum_n dL_n / dm|; ``batch_fisher`` squares
    the gradient of a batch instead of that of an image; ``running_fisher``
    does not begin anew after a pruning step.
    """

    def __init__(self, *args: Any, criterion: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.criterion = criterion
        self.uses_gradients = criterion not in ('l1', 'bn_scale', 'random')
        self.kept_share = KEPT if criterion == 'running_fisher' else 0.0

    def of_batch(self, gradients: Tensor) -> Tensor:
        """What the criterion sums over batches."""
        if self.criterion == 'taylor':
            return gradients.sum(0)
        if self.criterion == 'batch_fisher':
            return gradients.sum(0).square()
        return super().of_batch(gradients)

    def fisher(self) -> list[np.ndarray]:
        """Scores by the criterion, shape (size,) per group."""
        if not self.uses_gradients:
            return [self._score(group) for group in self.groups]
        return [abs(total) for total in super().fisher()]

    def _score(self, group: ChannelGroup) -> np.ndarray:
        if self.criterion == 'random':
            return torch.rand(group.size).numpy()
        roles = {'affine'}
        if self.criterion == 'l1':
            roles |= {'producer', 'consumer', 'grouped'}
        return self._magnitude(group, roles)

    def _magnitude(self, group: ChannelGroup, roles: set[str]) -> np.ndarray:
        """Sum of absolute weights, mean of the layers; 1 is a group's mean.

        As Torch-Pruning's ``GroupMagnitudeImportance(p=1)``.
        """
        tensors = named_tensors(self.model)
        layers = []
        for member in group.members:
            if member.role in roles and member.tensor.endswith('weight'):
                tensor = tensors[member.tensor].detach().abs()
                tensor = tensor.transpose(0, member.axis)
                each = tensor.reshape(len(tensor), -1).sum(1)
                layers.append(each.cpu().numpy()[member.index].sum(1))
        if not layers:
            raise ValueError(
                f'the group {group.name} has no layer to score by '
                f'{self.criterion}'
            )
        means = np.mean(layers, 0)
        return means / means.mean()


@HOOKS.register_module()
class CriterionPruningHook(FisherPruningHook):
    """The pruning hook with another criterion.

    Args:
        criterion (str): One of :data:`CRITERIA`.
        **kwargs: Of :class:`mmgfp.FisherPruningHook`.
    """

    def __init__(self, criterion: str = '', **kwargs: Any) -> None:
        # the mean of a group is that of what is left of it
        super().__init__(**{'cut_to': 1, **kwargs})
        if criterion not in CRITERIA:
            raise ValueError(
                f'criterion={criterion!r}; expected one of {CRITERIA}'
            )
        self.pruner_type = partial(CriterionPruner, criterion=criterion)
