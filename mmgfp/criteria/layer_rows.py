"""Inputs and gradients of convolutions and linear layers as matrix rows.

A layer computes ``y = W a`` for many vectors ``a``: one for each position of
each image, each call and, with groups, each group of the convolution. Its
curvature is computed from the vectors ``a`` and the gradients of the loss with
respect to ``y``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# Elements of a block of rows: 64 MB in single precision.
BLOCK = 1 << 24


def is_matrix_layer(module: nn.Module) -> bool:
    """Returns whether the curvature of a layer's weight can be measured."""
    return isinstance(module, (_ConvNd, nn.Linear))


def computes_as_known(module: nn.Module, source: Tensor, out: Tensor) -> bool:
    """Returns whether a layer has the result of its PyTorch base class.

    Args:
        module (nn.Module): A layer; its class may have another forward.
        source (Tensor): Its input.
        out (Tensor): Its result.
    """
    base = next(
        kind
        for kind in type(module).__mro__
        if kind.__module__.startswith('torch.nn.modules')
    )
    if type(module).forward is base.forward:  # type: ignore[attr-defined]
        return True
    with torch.no_grad():
        known = base.forward(module, source)  # type: ignore[attr-defined]
    return known.shape == out.shape and torch.allclose(
        known, out, rtol=1e-3, atol=1e-5
    )


def conv_groups(module: nn.Module) -> int:
    """Returns the groups of a convolution; 1 for a linear layer."""
    return int(getattr(module, 'groups', 1))


def kernel_size(module: nn.Module) -> int:
    """Returns the kernel elements of a convolution; 1 for a linear layer."""
    assert isinstance(module.weight, Tensor)
    return module.weight[0, 0].numel()


def is_transposed(module: nn.Module) -> bool:
    """Returns whether a convolution is transposed.

    Its weight has an input in each row. Patches are cut from its result.
    """
    return isinstance(module, _ConvTransposeNd)


def input_rows(module: nn.Module, source: Tensor) -> Iterator[Tensor]:
    """Yields the vectors that a layer's weight is multiplied with.

    Args:
        module (nn.Module): A convolution or linear layer.
        source (Tensor): Its input.

    Yields:
        Tensor: (g, R, d) for g groups, in blocks of rows; d is the number of
        inputs of a group, times the kernel unless transposed.
    """
    return _rows(module, source, not is_transposed(module))


def gradient_rows(
    module: nn.Module, gradient: Tensor, source: Tensor
) -> Iterator[Tensor]:
    """Yields the gradients with respect to a layer's output.

    Args:
        module (nn.Module): A convolution or linear layer.
        gradient (Tensor): Gradient of the loss in the shape of the output.
        source (Tensor): The layer's input.

    Yields:
        Tensor: (g, R, d) as in :func:`input_rows`; d is the number of outputs
        of a group, times the kernel if transposed.
    """
    return _rows(module, gradient, *_cut_of_gradient(module, source))


def input_squares(module: nn.Module, source: Tensor) -> tuple[Tensor, int]:
    """Returns the sum of the squares of :func:`input_rows`.

    Returns:
        tuple[Tensor, int]: (g, d), and the number R of rows.
    """
    return _squares(module, source, not is_transposed(module))


def gradient_squares(
    module: nn.Module, gradient: Tensor, source: Tensor
) -> tuple[Tensor, int]:
    """Returns the sum of the squares of :func:`gradient_rows`.

    Returns:
        tuple[Tensor, int]: (g, d), and the number R of rows.
    """
    return _squares(module, gradient, *_cut_of_gradient(module, source))


def _cut_of_gradient(
    module: nn.Module, source: Tensor
) -> tuple[bool, Sequence[int]]:
    """Returns whether patches are cut, and how many along each axis."""
    if not isinstance(module, _ConvTransposeNd):
        return False, ()
    return True, source.shape[-len(module.kernel_size) :]


def _squares(
    module: nn.Module,
    tensor: Tensor,
    cut: bool,
    positions: Sequence[int] = (),
) -> tuple[Tensor, int]:
    if not isinstance(module, _ConvNd):
        rows = _in_float(tensor).reshape(1, -1, tensor.shape[-1])
        return rows.square().sum(1), rows.shape[1]
    images = float_images(module, tensor)
    # every image has the same patches, also with padding
    squares = images.square().sum(0, keepdim=True)
    view = _vectors(module, squares, cut, positions)
    axes = range(1, 2 + len(module.kernel_size))
    rows_of_each = math.prod(view.shape[axis] for axis in axes)
    return view.sum(tuple(axes)).flatten(1), len(images) * rows_of_each


def _rows(
    module: nn.Module,
    tensor: Tensor,
    cut: bool,
    positions: Sequence[int] = (),
) -> Iterator[Tensor]:
    if not isinstance(module, _ConvNd):
        rows = _in_float(tensor).reshape(1, -1, tensor.shape[-1])
        yield from rows.split(max(1, BLOCK // tensor.shape[-1]), 1)
        return
    space = len(module.kernel_size)
    tensor = _vectors(module, float_images(module, tensor), cut, positions)
    elements = tensor[:, 0].numel()
    for images in tensor.split(max(1, BLOCK // elements), 1):
        # a single image may be too large, so its first axis is divided
        lines = max(1, images.shape[2] * BLOCK // images.numel())
        for block in images.split(lines, 2):
            yield block.flatten(1, 1 + space).flatten(2)


def _vectors(
    module: _ConvNd, images: Tensor, cut: bool, positions: Sequence[int]
) -> Tensor:
    """Returns a view (g, N, positions ..., channels of a group, kernel ...).

    Args:
        module (_ConvNd): The convolution.
        images (Tensor): (N, C, ...).
        cut (bool): Whether to cut patches; otherwise there is no kernel.
        positions (Sequence[int]): Numbers of patches along the axes, if not
            all.
    """
    space = len(module.kernel_size)
    if cut:
        images = _patches(module, images)
        for axis, count in enumerate(positions, 2):
            # an output padding from the stride on has room for more
            images = images.narrow(axis, 0, count)
    view = images.unflatten(1, (module.groups, -1)).movedim((1, 2), (0, -1))
    return view.movedim(-1, 2 + space) if cut else view


def float_images(module: _ConvNd, tensor: Tensor) -> Tensor:
    """Returns the input or result of a convolution as a batch.

    Args:
        module (_ConvNd): The convolution.
        tensor (Tensor): (N, C, ...), or (C, ...) of a single image.

    Returns:
        Tensor: (N, C, ...) in single precision, or in double if given so.
    """
    single = tensor.dim() == len(module.kernel_size) + 1
    return _in_float(tensor[None] if single else tensor)


def _in_float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def padding_of(module: _ConvNd) -> list[int]:
    """Returns the padding that a forward uses, as for ``functional.pad``.

    With zeros it is that of the attribute, which code may have changed; with
    other values that of the construction.
    """
    if module.padding_mode != 'zeros':
        return list(module._reversed_padding_repeated_twice)
    if isinstance(module.padding, str):  # 'valid' or 'same'
        totals = [
            dilation * (size - 1) if module.padding == 'same' else 0
            for size, dilation in zip(module.kernel_size, module.dilation)
        ]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(size, size) for size in module.padding]
    return [size for pair in reversed(sides) for size in pair]


def _patches(module: _ConvNd, tensor: Tensor) -> Tensor:
    """Returns the kernel's patches, (N, C, positions ..., kernel ...)."""
    kind = module.padding_mode  # 'zeros' for transposed convolutions
    tensor = pad(
        tensor,
        padding_of(module),
        mode='constant' if kind == 'zeros' else kind,
    )
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation)
    ):
        span = dilation * (size - 1) + 1
        tensor = tensor.unfold(2 + axis, span, stride)[..., ::dilation]
    return tensor
