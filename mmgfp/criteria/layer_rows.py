"""What convolutions and linear layers multiply, as rows of matrices.

A layer computes ``y = W a`` for many vectors ``a``: one for each position of
each image, each call and, with groups, each group of the convolution. Two
views of a batch are enough for its curvature: the vectors ``a`` and the
gradients of the loss with respect to ``y``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# Elements of a block of rows: 64 MB in single precision.
_BLOCK = 1 << 24


def is_matrix_layer(module: nn.Module) -> bool:
    """Whether the curvature of a layer's weight can be measured."""
    return isinstance(module, (_ConvNd, nn.Linear))


def computes_as_known(module: nn.Module, source: Tensor, out: Tensor) -> bool:
    """Whether a layer computes what its class of PyTorch computes.

    Args:
        module (nn.Module): A layer; its class may have another forward.
        source (Tensor): What it was given.
        out (Tensor): What it has returned.
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
    """Groups of a convolution; 1 for a linear layer."""
    return int(getattr(module, 'groups', 1))


def kernel_size(module: nn.Module) -> int:
    """Elements of a convolution's kernel; 1 for a linear layer."""
    assert isinstance(module.weight, Tensor)
    return module.weight[0, 0].numel()


def is_transposed(module: nn.Module) -> bool:
    """Whether patches are cut out of what the layer returns.

    The weight of a transposed convolution has an input in each row.
    """
    return isinstance(module, _ConvTransposeNd)


def input_rows(module: nn.Module, source: Tensor) -> Iterator[Tensor]:
    """The vectors that a layer's weight is multiplied with.

    Args:
        module (nn.Module): A convolution or linear layer.
        source (Tensor): Its input.

    Yields:
        Tensor: (g, R, d) for g groups, in blocks of rows; d is the inputs of
        a group times the kernel, the inputs alone if it is transposed.
    """
    return _rows(module, source, not is_transposed(module))


def gradient_rows(module: nn.Module, gradient: Tensor) -> Iterator[Tensor]:
    """The gradients with respect to what a layer returns.

    Args:
        module (nn.Module): A convolution or linear layer.
        gradient (Tensor): Of the loss, of the shape of its output.

    Yields:
        Tensor: (g, R, d) as in :func:`input_rows`, d being the outputs of a
        group; times the kernel if the convolution is transposed.
    """
    return _rows(module, gradient, is_transposed(module))


def _rows(module: nn.Module, tensor: Tensor, cut: bool) -> Iterator[Tensor]:
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if not isinstance(module, _ConvNd):
        yield from tensor.flatten(0, -2)[None].split(
            max(1, _BLOCK // tensor.shape[-1]), 1
        )
        return
    space = len(module.kernel_size)
    if tensor.dim() == space + 1:  # a single image
        tensor = tensor[None]
    if cut:
        tensor = _patches(module, tensor)
    # (g, N, positions ..., channels of a group, kernel ...), still a view
    tensor = tensor.unflatten(1, (module.groups, -1)).movedim((1, 2), (0, -1))
    if cut:
        tensor = tensor.movedim(-1, 2 + space)
    elements = tensor[:, 0].numel()
    for images in tensor.split(max(1, _BLOCK // elements), 1):
        # a single one may be too large; a part of its first axis is not
        lines = max(1, images.shape[2] * _BLOCK // images.numel())
        for block in images.split(lines, 2):
            yield block.flatten(1, 1 + space).flatten(2)


def _patches(module: _ConvNd, tensor: Tensor) -> Tensor:
    """What the kernel comes to lie on, (N, C, positions ..., kernel ...)."""
    kind = module.padding_mode  # transposed ones have zeros only
    tensor = pad(
        tensor,
        module._reversed_padding_repeated_twice,
        mode='constant' if kind == 'zeros' else kind,
    )
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation)
    ):
        span = dilation * (size - 1) + 1
        tensor = tensor.unfold(2 + axis, span, stride)[..., ::dilation]
    return tensor
