"""Which image of the batch each row of a layer's input belongs to.

Scores sum the mask gradients of one image before they are squared. Images
need not be the first axis: RoI heads have one row per RoI, window attention
several per image, and sequences often come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .utils.trees import Part, parts_of, replaced

# Ratio of the noise to the spread of an image's values. Large enough to change
# the rows, small enough that the same boxes are chosen.
CHANGE = 1e-4

Order = Literal['images', 'blocks', 'turns', 'rois', 'picked']


@dataclass(frozen=True)
class Layout:
    """How the rows of a layer's input belong to images.

    Attributes:
        axis (int): The axis of the input along which the rows lie.
        order (str): 'images' for one row per image; 'blocks' for consecutive
            rows per image, the same number each; 'turns' for images that
            take turns; 'rois' for consecutive rows per RoI, the same number
            each; 'picked' for rows that :func:`picked_images` finds.
        extractor (str): For 'rois' the module that extracts the RoIs.
        batches (bool): Whether each tensor of a list with three axes in the
            network's input is a batch, not an image.
    """

    axis: int = 0
    order: Order = 'images'
    extractor: str = ''
    batches: bool = False

    def fits(self, rows: int, images: int, rois: Tensor | None = None) -> bool:
        """Returns whether the number of rows fits; see :meth:`owners`."""
        if self.order in ('images', 'picked') or images == 0:
            return rows == images
        if rows == 0 or self.order != 'rois':
            return rows % images == 0
        return rois is not None and len(rois) > 0 and rows % len(rois) == 0

    def owners(
        self,
        rows: int,
        images: int,
        rois: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Returns the image of every row, shape (rows,); the number must fit.

        Args:
            rows (int): Size of the axis.
            images (int): Images in the batch.
            rois (Tensor, optional): For 'rois' the image of every RoI.
            device (torch.device, optional): For the result.
        """
        if rows == 0:
            return torch.zeros(0, dtype=torch.long, device=device)
        if self.order == 'rois':
            assert rois is not None
            rois, count = rois.to(device), rows // len(rois)
            return rois if count == 1 else rois.repeat_interleave(count)
        each = torch.arange(images, device=device)
        count = rows // images
        if self.order == 'turns':
            return each.repeat(count)
        return each.repeat_interleave(count)


ROW_PER_IMAGE = Layout()


def count_images(
    args: tuple, kwargs: Mapping[str, Any], batches: bool = False
) -> int | None:
    """Returns the images in a network's input; None if it has no tensor.

    A tensor is a batch of images. A list of tensors with three axes has one
    image in each. An empty list has no image, if there is no tensor at all.

    Args:
        args (tuple): Positional arguments of the call.
        kwargs (Mapping): Keyword arguments of the call.
        batches (bool): See :class:`Layout`. Defaults to False.
    """
    value = (args, kwargs)
    path = _path_to_batch(value, batches)
    return None if path is None else len(_at(value, path))


def _path_to_batch(
    value: tuple[tuple, Mapping[str, Any]], batches: bool
) -> list[Part] | None:
    """Returns the path to the first batch; objects are searched last."""
    path = _path(value, batches, False, {})
    if path is None:
        path = _path_to_empty_list(*value)
    return _path(value, batches, True, {}) if path is None else path


def _path_to_empty_list(
    args: tuple, kwargs: Mapping[str, Any]
) -> list[Part] | None:
    for i, arguments in enumerate((args, kwargs)):
        for part in parts_of(arguments):
            if isinstance(part.value, list) and not part.value:
                return [Part(arguments, 'item', i), part]
    return None


def _path(
    value: Any, batches: bool, objects: bool, seen: dict[int, Any]
) -> list[Part] | None:
    if isinstance(value, Tensor):
        return [] if value.dim() else None
    if not batches and _is_image_list(value):
        return []
    # reading an iterator would consume it
    if isinstance(value, Iterator) or id(value) in seen:
        return None
    seen[id(value)] = value
    for part in parts_of(value):
        if objects or part.kind == 'item':
            rest = _path(part.value, batches, objects, seen)
            if rest is not None:
                return [part, *rest]
    return None


def _at(value: Any, path: Sequence[Part]) -> Any:
    return path[-1].value if path else value


def _put(value: Any, path: Sequence[Part], new: Any) -> Any:
    """Returns a copy with another value at the end of a path."""
    if not path:
        return new
    first, *rest = path
    return replaced(
        value, [first._replace(value=_put(first.value, rest, new))]
    )


def _is_image_list(value: Any) -> bool:
    """Returns whether the value may be a list of single images."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(v, Tensor) and v.dim() == 3 for v in value)
    )


class ImageChange:
    """Forward pre-hook of the network that changes one image of its batch.

    The batch is the first tensor, as for :func:`count_images`.

    Args:
        image (int): Index of the image.
        batches (bool): See :class:`Layout`. Defaults to False.
    """

    def __init__(self, image: int, batches: bool = False) -> None:
        self.image, self.batches = image, batches
        self.listed = False  # whether the batch was a list of tensors

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Returns the changed args and kwargs."""
        value = (args, kwargs)
        path = _path_to_batch(value, self.batches)
        if path is None:
            return value
        found = _at(value, path)
        self.listed |= isinstance(found, list)
        if self.image >= len(found) or not found[0].is_floating_point():
            return value
        batch = list(found)
        batch[self.image] = _noisy(batch[self.image])
        new = torch.stack(batch) if torch.is_tensor(found) else batch
        return _put(value, path, new)


def _noisy(image: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(image.shape, generator=generator).to(image)
    spread = float((image - image.mean()).abs().mean())
    return image + CHANGE * (spread or 1.0) * noise


def images_of_rois(
    args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any
) -> Tensor | None:
    """Returns the image of every RoI, if this call extracted RoIs.

    The arguments decide, not the class of the module: the features are
    followed by RoIs, (R, 5) or (R, 6) with the index of the image first, or by
    a list of boxes, (k, 4) per image; the result has R rows.

    Returns:
        Tensor | None: (R,); None if it extracted none.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        return None
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, Tensor):
            if (
                value.dim() == 2
                and value.shape[1] in (5, 6)
                and value.is_floating_point()
                and len(value) == len(outputs)
            ):
                return value[:, 0].detach().long()
        elif isinstance(value, (list, tuple)) and value:
            boxes: list[Any] = [getattr(v, 'tensor', v) for v in value]
            if all(
                isinstance(b, Tensor) and b.dim() == 2 and b.shape[1] == 4
                for b in boxes
            ) and sum(len(b) for b in boxes) == len(outputs):
                counts = torch.tensor([len(b) for b in boxes])
                images = torch.arange(len(boxes))
                return images.repeat_interleave(counts).to(outputs.device)
    return None


# Operations that keep every row in place, by the names of their gradients
# without number.
_ROW_WISE = frozenset(
    f'{name}Backward'
    for name in (
        *('Add', 'Sub', 'Mul', 'Div', 'Neg', 'Mm', 'Addmm', 'Convolution'),
        *('NativeBatchNorm', 'CudnnBatchNorm', 'NativeGroupNorm'),
        *('NativeLayerNorm', 'NativeDropout', 'Relu', 'LeakyRelu'),
        *('PreluKernel', 'Elu', 'Gelu', 'Silu', 'Sigmoid', 'Tanh'),
        *('Softplus', 'Hardtanh', 'Hardswish', 'Hardsigmoid', 'Mish'),
        *('AvgPool2D', 'AdaptiveAvgPool2D', 'MaxPool2DWithIndices'),
        *('ToCopy', 'Clone', 'Alias', '_Tap'),
    )
)

# Operations that do so only if the size of the first axis stays.
_RESHAPING = {'ViewBackward', 'UnsafeViewBackward', 'ReshapeAliasBackward'}

_PICKING = {
    *('IndexBackward', 'IndexSelectBackward', 'SliceBackward'),
    *('SplitBackward', 'SplitWithSizesBackward'),
}


def picked_images(source: Tensor, images: int) -> Tensor | None:
    """Returns the image of every row picked from a batch, (rows,).

    Follows the graph of the tensor back, through layers that keep rows in
    place, to where a tensor with one row per image was indexed: by a mask, by
    indices or by a slice.

    Args:
        source (Tensor): Has a gradient function; rows are its first axis.
        images (int): Images in the batch.

    Returns:
        Tensor | None: None if rows were not picked in this way.
    """
    # results of operations, and the rows of them that are sought
    rows = torch.arange(len(source), device=source.device)
    start: tuple[Any, int] = (source.grad_fn, source.output_nr)
    sought = {start: rows}
    sizes = {start: len(source)}
    open_ends = [start]
    found: list[Tensor] = []
    while open_ends:
        result = open_ends.pop()
        node, number = result
        name = type(node).__name__.rstrip('0123456789')
        rows, size = sought[result], sizes[result]
        picked = _picked(node, name, number)
        if picked is not None:
            rows = picked.to(rows.device)[rows]
            size = node._saved_self_sym_sizes[0]
            if size == images:
                found.append(rows)
                continue
        elif _is_parameter(node, name):
            continue
        elif not _leaves_rows(node, name, size):
            return None
        for parent in node.next_functions:
            if parent[0] is None:
                continue
            if parent not in sought:
                sought[parent], sizes[parent] = rows, size
                open_ends.append(parent)
            elif not rows.equal(sought[parent]):
                return None
    if not found or not all(rows.equal(found[0]) for rows in found):
        return None
    return found[0]


def _picked(node: Any, name: str, number: int) -> Tensor | None:
    """Returns the rows that an operation picks of its input, or None.

    Args:
        node (Any): Gradient function of the operation.
        name (str): Name of its class, without number.
        number (int): Index of the operation's result.
    """
    if name not in _PICKING:
        return None
    size, *others = node._saved_self_sym_sizes
    if name == 'IndexBackward':
        index, *rest = node._saved_indices
        if (
            index is None
            or index.dim() != 1
            or any(other is not None for other in rest)
        ):
            return None
        if index.dtype in (torch.bool, torch.uint8):
            return index.nonzero().flatten()
        return index % size
    if _axis(node._saved_dim, 1 + len(others)) != 0:
        return None
    if name == 'IndexSelectBackward':
        return node._saved_index
    rows = torch.arange(size)
    if name == 'SliceBackward':
        return rows[node._saved_start : node._saved_end : node._saved_step]
    if name == 'SplitBackward':
        return rows.split(node._saved_split_size)[number]
    return rows.split(list(node._saved_split_sizes))[number]


def _is_parameter(node: Any, name: str) -> bool:
    """Returns whether a node is a parameter, or a reshaped or cast one."""
    while name in {'TBackward', 'ToCopyBackward'} | _RESHAPING:
        ((node, _),) = node.next_functions
        name = type(node).__name__.rstrip('0123456789')
    return name == 'AccumulateGrad'


def _leaves_rows(node: Any, name: str, size: int) -> bool:
    """Returns whether an operation keeps its ``size`` rows in place."""
    if name in _RESHAPING:
        return node._saved_self_sym_sizes[0] == size
    if name == 'MeanBackward':
        dims = len(node._saved_self_sym_sizes)
        return 0 not in [_axis(dim, dims) for dim in node._saved_dim]
    if name in _PICKING:  # along another axis
        return name != 'IndexBackward' or node._saved_indices[0] is None
    return name in _ROW_WISE


def _axis(dim: int, dims: int) -> int:
    """Returns the axis counted from 0; torch stores some as unsigned."""
    return (dim - (1 << 64) if dim >> 63 == 1 else dim) % dims
