"""Masks: chosen channels that are still in the network have no effect.

Channels are masked by zeroing the slices of the consumers' weights that read
them (paper, Section 3.1). The gradients of the slices are zeroed, too. So they
do not count when gradients are clipped, and the optimiser leaves them at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from ..groups import ChannelGroup
from .positions import masked_positions
from .surgery import element_state, named_tensors


class GradientMask:
    """Masks channels of a network during training.

    Args:
        model (nn.Module): The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[Any] = []

    def put(
        self,
        groups: Sequence[ChannelGroup],
        units: Sequence[np.ndarray],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        copies: Sequence[nn.Module] = (),
    ) -> None:
        """Zero the slices that read these units, now and after every backward.

        Args:
            groups (Sequence[ChannelGroup]): All groups.
            units (Sequence[np.ndarray]): Per group the units to mask.
            optimizers (Sequence[Optimizer]): Their state is zeroed, too.
            copies (Sequence[nn.Module]): Copies of the network (EMA) to mask.

        Raises:
            ValueError: See :func:`mmgfp.slimming.surgery.element_state`.
        """
        by_tensor: dict[str, dict[int, Tensor]] = {}
        for (name, axis), at in masked_positions(groups, units).items():
            by_tensor.setdefault(name, {})[axis] = torch.from_numpy(at)
        for model in (self._model, *copies):
            tensors = named_tensors(model)
            for name, axes in by_tensor.items():
                _zero(tensors[name].data, axes)
        tensors = named_tensors(self._model)
        for name, axes in by_tensor.items():
            parameter = tensors[name]
            for optimizer in optimizers:
                for _, value in element_state(optimizer, parameter, name):
                    _zero(value, axes)
            if parameter.grad is not None:
                _zero(parameter.grad, axes)
            if parameter.requires_grad:
                fill = _Fill(axes, parameter.device)
                self._handles.append(parameter.register_hook(fill))

    def lift(self) -> None:
        """Stop zeroing gradients; weights that are zero stay zero."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@unserializable_hook
class _Fill:
    """Hook of a parameter that zeros slices of its gradient.

    Copies of the parameter, also pickled ones, have no such hook.
    """

    def __init__(
        self, axes: Mapping[int, Tensor], device: torch.device
    ) -> None:
        self._axes = {axis: at.to(device) for axis, at in axes.items()}

    def __call__(self, grad: Tensor) -> Tensor:
        for axis, at in self._axes.items():
            grad = grad.index_fill(axis, at, 0)
        return grad


def _zero(tensor: Tensor, axes: Mapping[int, Tensor]) -> None:
    for axis, at in axes.items():
        tensor.index_fill_(axis, at.to(tensor.device), 0)
