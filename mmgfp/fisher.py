"""Fisher information of channels, collected while the network trains.

Notation: N images, C channels, U units of all groups in one flat vector.

For a unit with mask entry m the score is ``sum_n (dL_n / dm)^2`` (paper,
Equation 4), where the mask gradient of image n,
``dL_n / dm = sum_x sum_{positions} A_n[x] * dL_n / dA_n[x]``, is summed over
all channels x that share the entry - coupled layers, the channels of a
convolution group, the calls of a shared head - *before* it is squared
(Equation 5).

Batch norm in training mode mixes the images of a batch; dL_n then means the
derivative of the batch loss with respect to image n's own activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .groups import ChannelGroup


class FisherTaps:
    """Observes the consumers of channel groups during training.

    Every consumer's input passes through an identity whose backward adds the
    mask gradients of this call to one ``(N, U)`` buffer. Nothing is stored
    but that buffer: the input is the one the consumer keeps anyway.

    Args:
        model (nn.Module): The network that trains.
        groups (Sequence[ChannelGroup]): Its prunable groups.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup]
    ) -> None:
        self.num_units = sum(group.size for group in groups)
        self.buffer: Tensor | None = None
        self._handles = []
        modules = dict(model.named_modules())
        for name, (axis, unit) in _unit_maps(groups).items():
            index = torch.from_numpy(unit)
            self._handles.append(
                modules[name].register_forward_pre_hook(
                    _PreHook(self, axis, index)
                )
            )

    def detach(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.buffer = None

    def add(self, gradients: Tensor, index: Tensor) -> None:
        """Add one call's mask gradients, shape (N, C), to the buffer.

        Args:
            gradients (Tensor): (N, C).
            index (Tensor): (C,) unit of each channel; ``num_units`` collects
                the channels that belong to no unit.

        Raises:
            RuntimeError: If N differs within one iteration.
        """
        if self.buffer is None:
            self.buffer = gradients.new_zeros(
                len(gradients), self.num_units + 1
            )
        if len(gradients) != len(self.buffer):
            raise RuntimeError(
                f'a layer was called on {len(gradients)} samples where '
                f'another was called on {len(self.buffer)}: scores need the '
                'first axis of every layer to be the images of the batch'
            )
        self.buffer.index_add_(1, index, gradients)

    def take(self) -> Tensor | None:
        """The mask gradients of this iteration, (N, U), and forget them.

        Returns:
            Tensor | None: None if no consumer got a gradient.
        """
        buffer, self.buffer = self.buffer, None
        return None if buffer is None else buffer[:, :-1]


class _PreHook:
    """Forward pre-hook that sends a consumer's input through the tap.

    A class, not a closure: copies of the network (EMA) must not observe.
    """

    def __init__(self, taps: FisherTaps, axis: int, index: Tensor) -> None:
        self.taps, self.axis, self.index = taps, axis, index

    def __deepcopy__(self, memo: dict) -> Any:
        return _ignore

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        source = args[0]
        if not (torch.is_grad_enabled() and source.requires_grad):
            return None
        if self.index.device != source.device:
            self.index = self.index.to(source.device)
        return (_Tap.apply(source, self), *args[1:])


def _ignore(module: nn.Module, args: tuple) -> None:
    """What a copied tap does."""


class _Tap(torch.autograd.Function):
    """Identity; its backward reduces input times gradient per image."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, hook: _PreHook) -> Tensor:
        ctx.save_for_backward(source)
        ctx.hook = hook
        return source.view_as(source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        hook = ctx.hook
        hook.taps.add(mask_gradients(source, grad, hook.axis), hook.index)
        return grad, None


def mask_gradients(source: Tensor, grad: Tensor, channel_axis: int) -> Tensor:
    """``sum`` of ``source * grad`` over all axes but images and channels.

    Args:
        source (Tensor): Input of a consumer, (N, C, *) or (N, *, C).
        grad (Tensor): Gradient of the loss with respect to it.
        channel_axis (int): 1 or -1.

    Returns:
        Tensor: (N, C), in float32 at least.
    """
    dtype = torch.promote_types(source.dtype, torch.float32)
    source, grad = source.to(dtype), grad.to(dtype)
    if channel_axis == 1:
        return torch.einsum(
            'ncs,ncs->nc',
            source.flatten(2) if source.dim() > 2 else source[:, :, None],
            grad.flatten(2) if grad.dim() > 2 else grad[:, :, None],
        )
    n, c = source.shape[0], source.shape[-1]
    return torch.einsum(
        'nsc,nsc->nc', source.reshape(n, -1, c), grad.reshape(n, -1, c)
    )


def _unit_maps(
    groups: Sequence[ChannelGroup],
) -> dict[str, tuple[int, np.ndarray]]:
    """Per consumer its channel axis and the flat unit of each channel."""
    total = sum(group.size for group in groups)
    maps: dict[str, tuple[int, np.ndarray]] = {}
    start = 0
    for group in groups:
        for tap in group.taps:
            blank = np.full(len(tap.unit), total)
            _, unit = maps.setdefault(tap.module, (tap.channel_axis, blank))
            mine = tap.unit >= 0
            unit[mine] = start + tap.unit[mine]
        start += group.size
    return maps
