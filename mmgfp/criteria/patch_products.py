"""Sums of products of a convolution's patches, without making the patches.

The patches of neighbouring positions overlap: the products of two kernel
elements depend on the offset between them, except at the border. A 3x3 kernel
has 45 pairs of elements, without regard to their order, and 13 offsets. The
sum for a pair is that of its offset over the whole image, less the products at
the border that are in no patch at this element.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import TypeGuard

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import pad

from .layer_rows import BLOCK, float_images, padding_of


def has_products(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Returns whether :func:`patch_products` supports a layer.

    It is a convolution of images with at least one kernel side of 3 and none
    of another size than 1 and 3, whose result has the size of its input.
    """
    return (
        isinstance(module, nn.Conv2d)
        and 3 in module.kernel_size
        and {1, 3} >= set(module.kernel_size)
        and set(module.stride) == {1}
        and module.padding_mode == 'zeros'
        and padding_of(module)
        == [far for far in _far(module)[::-1] for _ in range(2)]
    )


def pays(module: nn.Conv2d, source: Tensor) -> bool:
    """Returns whether offsets are faster than patches.

    They are not where the border, which has zeros, is a large part of the
    image, nor for few rows.
    """
    height, width = source.shape[-2:]
    far_y, far_x = _far(module)
    images = source.numel() // max(1, source.shape[-3] * height * width)
    padded = (height + 2 * far_y) * (width + 2 * far_x)
    return images * height * width >= 128 and 13 * padded < 65 * height * width


def patch_products(
    module: nn.Conv2d, source: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yields sums over rows, as those of :func:`layer_rows.input_rows`.

    The elements of these rows are ordered by kernel element, then by channel,
    so that each pair of kernel elements is a contiguous block of the result.

    Args:
        module (nn.Conv2d): A convolution with :func:`has_products`.
        source (Tensor): Its input.

    Yields:
        tuple[Tensor, Tensor, int]: For g groups of the convolution (g, d, d)
        the sum of outer products of the rows and (g, d) their sum, for d
        inputs of a group times the kernel, and the number of rows. Images are
        taken in parts.
    """
    images = float_images(module, source)
    far_y, far_x = _far(module)
    height, width = images.shape[2:]
    padded = images.shape[1] * (height + 2 * far_y) * (width + 2 * far_x)
    for part in images.split(max(1, BLOCK // padded)):
        parts = part.transpose(0, 1).unflatten(0, (module.groups, -1))
        products, sums = _of_images(module, parts)
        yield products, sums, len(part) * part[0, 0].numel()


def _far(module: nn.Conv2d) -> tuple[int, int]:
    """Returns the distance of the outer kernel elements from the centre."""
    far_y, far_x = (
        dilation * (size // 2)
        for size, dilation in zip(module.kernel_size, module.dilation)
    )
    return far_y, far_x


def channel_order(module: nn.Conv2d) -> np.ndarray:
    """Returns the positions, (d,), of the elements in the weight's order."""
    count = module.kernel_size[0] * module.kernel_size[1]
    channels = module.in_channels // module.groups
    return np.arange(count * channels).reshape(count, channels).T.ravel()


def _of_images(module: nn.Conv2d, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums for images (g, c, N, height, width)."""
    groups, channels, _, height, width = images.shape
    far_y, far_x = _far(module)
    # with zeros between rows and images an offset is a shift in memory
    padded = pad(images, (0, 2 * far_x, 0, 2 * far_y))
    pitch = width + 2 * far_x
    # no patch has one of the last rows at a kernel element above the centre,
    # nor one of the first rows at an element below it
    rows = {
        -1: padded[..., max(0, height - far_y) : height, :],
        1: padded[..., :far_y, :],
    }
    columns = {
        side: part.transpose(3, 4)
        for side, part in (
            (-1, padded[..., max(0, width - far_x) : width]),
            (1, padded[..., :far_x]),
        )
    }
    corners = {
        (y, x): (
            rows[y][..., :far_x]
            if x > 0
            else rows[y][..., max(0, width - far_x) : width]
        )
        for y, x in product((-1, 1), repeat=2)
    }

    @cache
    def at_rows(side: int, offset: int) -> Tensor:
        return _products(rows[side], offset * far_x)

    @cache
    def at_columns(side: int, offset: int) -> Tensor:
        return _products(columns[side], offset * far_y)

    @cache
    def at_corner(y: int, x: int) -> Tensor:
        return _products(corners[y, x], 0)

    @cache
    def anywhere(y: int, x: int) -> Tensor:
        return _products(padded, y * far_y * pitch + x * far_x)

    # kernel elements as steps from the centre
    steps = [
        (y, x)
        for y in ((-1, 0, 1) if module.kernel_size[0] == 3 else (0,))
        for x in ((-1, 0, 1) if module.kernel_size[1] == 3 else (0,))
    ]
    count = len(steps)
    found = images.new_empty(groups, count, channels, count, channels)
    sums = images.new_empty(groups, count, channels)
    everything = _sum(padded)
    for j, (y, x) in enumerate(steps):
        total = everything
        if y:
            total = total - _sum(rows[y])
        if x:
            total = total - _sum(columns[x])
        if y and x:
            total = total + _sum(corners[y, x])
        sums[:, j] = total
        for i, (top, left) in enumerate(steps[: j + 1]):
            value = anywhere(y - top, x - left)
            same_row, same_column = y == top != 0, x == left != 0
            if same_row:
                value = value - at_rows(y, x - left)
            if same_column:
                value = value - at_columns(x, y - top)
            if same_row and same_column:
                value = value + at_corner(y, x)
            if i == j:  # rounding must not make squares negative
                value = value.clone()
                value.diagonal(0, 1, 2).clamp_(min=0)
            else:
                found[:, j, :, i] = value.transpose(1, 2)
            found[:, i, :, j] = value
    size = channels * count
    return found.view(groups, size, size), sums.view(groups, size)


def _products(images: Tensor, shift: int) -> Tensor:
    """Returns the sum of ``x[q] x[q + shift]^T`` over positions, (g, c, c)."""
    flat = images.flatten(2)
    first, second = flat[..., : flat.shape[2] - shift], flat[..., shift:]
    return first @ second.transpose(1, 2)


def _sum(images: Tensor) -> Tensor:
    return images.sum((2, 3, 4))
