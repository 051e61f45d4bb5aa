"""Mask gradients of channels, observed while the network trains.

Notation: N images, C channels, U units of all groups in one flat vector.

The mask gradient of a unit and image n, whose loss is L_n, is
``dL_n / dm = sum_x sum_{positions} A_n[x] * dL_n / dA_n[x]``, summed over all
channels x with this mask entry: coupled layers, the channels of a convolution
group, the calls of a shared head, the RoIs of the image (Group Fisher paper,
Equations 4 and 5).

Batch norm in training mode mixes the images of a batch; dL_n then means the
derivative of the batch loss with respect to image n's own activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import ChannelGroup, Tap, UnitSpace
from ..rows import count_images, images_of_rois, picked_images

# Elements of a block of products. On CPUs 4 MB in single precision, which fits
# the cache: smaller blocks cost more for starting threads, a single block is
# up to five times as slow. On GPUs starting an operation costs more than its
# memory; 64 MB limits the additional memory.
_BLOCK = {'cpu': 1 << 20}
_LARGE_BLOCK = 1 << 24

# Number of elements below which a sum in one pass is not faster.
_SMALL = 1 << 15


class Taps:
    """Observes the consumers of channel groups during training.

    Every consumer's input passes through an identity whose backward adds the
    mask gradients of this call to one ``(N, U)`` buffer. No other memory is
    needed, because the consumer keeps its input for the backward.

    Args:
        model (nn.Module): The trained network.
        units (UnitSpace): Units of its prunable groups.
    """

    def __init__(self, model: nn.Module, units: UnitSpace) -> None:
        self.units = units
        self.buffer: Tensor | None = None
        # of the latest forward: number of images, and the image of each RoI
        self.images: int | None = None
        self.rois: dict[str, Tensor] = {}
        # numbers of groups with a consumer whose input got no gradient
        self.unreached: set[int] = set()
        self._group = torch.from_numpy(units.group_of)
        modules = dict(model.named_modules())
        taps = units.consumers()
        self.batches = any(tap.layout.batches for tap, _ in taps)
        self._handles = [
            model.register_forward_pre_hook(
                _ImageCounter(self), with_kwargs=True
            )
        ]
        for name in {t.layout.extractor for t, _ in taps} - {''}:
            self._handles.append(
                modules[name].register_forward_hook(
                    _RoIWatcher(self, name), with_kwargs=True
                )
            )
        for tap, unit in taps:
            self._handles.append(
                modules[tap.module].register_forward_pre_hook(
                    _PreHook(self, tap, unit, units.groups_among(unit))
                )
            )

    def detach(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.rois.clear()
        self.buffer = None

    def add(self, gradients: Tensor, index: Tensor) -> None:
        """Add one call's mask gradients, shape (N, C), to the buffer.

        Args:
            gradients (Tensor): (N, C).
            index (Tensor): (C,) unit of each channel; U for channels that
                belong to no unit.

        Raises:
            RuntimeError: If N differs within one iteration.
        """
        if self.buffer is None:
            self.buffer = gradients.new_zeros(
                len(gradients), len(self.units) + 1
            )
        if len(gradients) != len(self.buffer):
            raise RuntimeError(
                f'the network was called on {len(gradients)} images and on '
                f'{len(self.buffer)} within one iteration, expected one batch '
                'per iteration: scores are summed per image'
            )
        self.buffer.index_add_(1, index, gradients)

    def take(self) -> Tensor | None:
        """Return the mask gradients of this iteration and clear the buffer.

        Returns:
            Tensor | None: (N, U); None if no consumer got a gradient.
        """
        buffer, self.buffer = self.buffer, None
        return None if buffer is None else buffer[:, :-1]

    def take_unreached(self) -> list[int]:
        """Return groups with a consumer without gradient; clear the list.

        The mask gradients of these groups are incomplete in this iteration.
        """
        numbers = sorted(self.unreached)
        self.unreached.clear()
        return numbers

    def images_per_group(self, gradients: Tensor) -> Tensor:
        """Returns the number of images with a nonzero gradient, (G,).

        Args:
            gradients (Tensor): (N, U).
        """
        if self._group.device != gradients.device:
            self._group = self._group.to(gradients.device)
        shape = len(gradients), len(self.units.groups)
        units = torch.zeros(shape, device=gradients.device)
        units.index_add_(1, self._group, (gradients != 0).float())
        return (units > 0).sum(0)


class _Watcher:
    """A hook that is replaced by :func:`_ignore` in copies of the network.

    Pickled copies are included.
    """

    def __init__(self, taps: Taps) -> None:
        self.taps = taps

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _do_nothing, ()


def _do_nothing() -> Callable:
    """Returns the hook of a copy."""
    return _ignore


def _ignore(*args: Any) -> None:
    """Hook of a copy; it does nothing."""


class _ImageCounter(_Watcher):
    """Forward pre-hook of the network; counts the images of the batch."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled():
            self.taps.images = count_images(args, kwargs, self.taps.batches)
            self.taps.rois.clear()


class _RoIWatcher(_Watcher):
    """Forward hook of an RoI extractor; records the image of each RoI."""

    def __init__(self, taps: Taps, name: str) -> None:
        super().__init__(taps)
        self.name = name

    def __call__(
        self, module: nn.Module, args: tuple, kwargs: dict, outputs: Any
    ) -> None:
        if torch.is_grad_enabled():
            rois = images_of_rois(args, kwargs, outputs)
            if rois is not None:
                self.taps.rois[self.name] = rois


class _PreHook(_Watcher):
    """Forward pre-hook that sends a consumer's input through the tap."""

    def __init__(
        self,
        taps: Taps,
        tap: Tap,
        unit: np.ndarray,
        groups: Sequence[int],
    ) -> None:
        super().__init__(taps)
        self.tap, self.index = tap, torch.from_numpy(unit)
        self.groups = groups

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        source = args[0]
        if not torch.is_grad_enabled():
            return None
        if not source.requires_grad:
            self.taps.unreached.update(self.groups)
            return None
        if self.index.device != source.device:
            self.index = self.index.to(source.device)
        images, owners = self._owners(source)
        return (_Tap.apply(source, self, images, owners), *args[1:])

    def _owners(self, source: Tensor) -> tuple[int, Tensor | None]:
        """Returns the number of images and the image of each row, (rows,).

        The second is None if each row is one image.

        Raises:
            RuntimeError: If the number of rows does not fit the images.
        """
        layout, images = self.tap.layout, self.taps.images
        rows = source.shape[layout.axis]
        rois = self.taps.rois.get(layout.extractor)
        if layout.order == 'images' and images in (None, rows):
            return rows, None
        if images is not None:
            owners = None
            if layout.axis == 0 and layout.order in ('images', 'picked'):
                owners = picked_images(source, images)
            fits = rows == 0 or layout.fits(rows, images, rois)
            if owners is None and fits:
                owners = layout.owners(rows, images, rois, source.device)
            if owners is not None:
                return images, owners
        read = [self.taps.units.groups[g] for g in self.groups]
        raise RuntimeError(_misfit(self.tap, read, rows, images, rois))


def _misfit(
    tap: Tap,
    read: Sequence[ChannelGroup],
    rows: int,
    images: int | None,
    rois: Tensor | None,
) -> str:
    if images is None:
        return (
            f'the layer {tap.module} was called without a call of the '
            'network, so the number of images in the batch is unknown: call '
            'the network itself on the batch'
        )
    expected = {
        'images': f'{images}, one for each image of the batch',
        'blocks': f'as many for each of the {images} images',
        'turns': f'as many for each of the {images} images',
        'picked': f'rows that were picked from those of {images} images',
        'rois': f'as many for each RoI that {tap.layout.extractor} extracted'
        f' ({"none in this iteration" if rois is None else len(rois)})',
    }[tap.layout.order]
    return (
        f'the input of {tap.module} has {rows} rows along axis '
        f'{tap.layout.axis}, expected {expected}, as in the demo forward. '
        'Scores need the image of every row. It is known for rows that were '
        'picked by a mask, by numbers or by a slice from a batch with a row '
        f'per image. Exclude the channels that {tap.module} reads: '
        f'ignore={[name for group in read for name in group.producers]}'
    )


class _Tap(torch.autograd.Function):
    """Identity; its backward reduces input times gradient per image."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        hook: _PreHook,
        images: int,
        owners: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(source)
        ctx.hook, ctx.images, ctx.owners = hook, images, owners
        return source.view_as(source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (source,) = ctx.saved_tensors
        tap = ctx.hook.tap
        gradients = mask_gradients(
            source, grad, tap.channel_axis, tap.layout.axis
        )
        if ctx.owners is not None:
            rows = gradients
            gradients = rows.new_zeros(ctx.images, rows.shape[1])
            gradients.index_add_(0, ctx.owners, rows)
        ctx.hook.taps.add(gradients, ctx.hook.index)
        return grad, None, None, None


def mask_gradients(
    source: Tensor, grad: Tensor, channel_axis: int, row_axis: int = 0
) -> Tensor:
    """Returns ``source * grad``, summed over all axes but rows and channels.

    Args:
        source (Tensor): Input of a consumer.
        grad (Tensor): Gradient of the loss with respect to it.
        channel_axis (int): Axis of the channels, 1 or -1.
        row_axis (int): Axis of the rows. Defaults to 0.

    Returns:
        Tensor: (rows, C), in float32 at least.
    """
    axes = row_axis, channel_axis % source.dim()
    source, grad = source.detach(), grad.detach()
    if axes == (0, 1) and _in_one_pass(source, grad):
        return _sum_planes(source, grad)
    sums = _sum_products(source, grad, axes)
    sums = sums.movedim(axes, (0, 1))
    return sums.flatten(1)


def _in_one_pass(source: Tensor, grad: Tensor) -> bool:
    return (
        source.device.type == 'cpu'
        and source.dtype == grad.dtype in (torch.float32, torch.float64)
        and source.numel() > _SMALL
        and source.is_contiguous()
        and grad.is_contiguous()
    )


def _sum_planes(source: Tensor, grad: Tensor) -> Tensor:
    """Returns sums of products of contiguous planes in one pass.

    The gradient of a batch norm's weight is this sum for means of 0 and
    deviations of 1. No other operation of torch computes it in one pass.
    """
    rows, channels = source.shape[:2]
    planes = rows * channels
    zeros, ones = source.new_zeros(planes), source.new_ones(planes)
    _, sums, _ = torch.ops.aten.native_batch_norm_backward(
        grad.view(1, planes, -1),
        source.view(1, planes, -1),
        *(None, None, None, zeros, ones, True, 0.0, [False, True, False]),
    )
    return sums.view(rows, channels)


def _sum_products(
    source: Tensor, grad: Tensor, kept: tuple[int, int]
) -> Tensor:
    """Sum over all axes that are not kept; these have size 1 afterwards.

    The sum runs in blocks. Products as large as the tensors would raise the
    peak of memory and be written and read again.
    """
    block = _BLOCK.get(source.device.type, _LARGE_BLOCK)
    if source.numel() <= block:
        dtype = torch.promote_types(source.dtype, torch.float32)
        products = source.to(dtype) * grad
        summed = [d for d in range(source.dim()) if d not in kept]
        return products.sum(summed, keepdim=True) if summed else products
    # along the axis that memory is ordered by
    axis = max(
        (d for d, n in enumerate(source.shape) if n > 1), key=source.stride
    )
    length = max(1, block * source.shape[axis] // source.numel())
    parts = [
        _sum_products(s, g, kept)
        for s, g in zip(source.split(length, axis), grad.split(length, axis))
    ]
    if axis in kept:
        return torch.cat(parts, axis)
    return torch.stack(parts).sum(0)
