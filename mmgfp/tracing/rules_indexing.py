"""Label rules of operations that pick, sort or place elements by position.

Picked rows may depend on the data (the best proposals, the boxes of one
pyramid level). Channels whose labels do not vary along the picked axes stay
prunable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.trees import tree_leaves
from .label_layers import canonical
from .labels import LabelTracer
from .rules_common import (
    argument,
    beside_labels,
    merge,
    name_of,
    resized,
    without,
)
from .rules_structure import structure


def index(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``x[:, positions]``: constant positions move the labels.

    With computed positions, labels that vary along the indexed axes are
    frozen.
    """
    positions = args[1]
    if not any(tr.layers(t) for t in positions if t is not None):
        structure(tr, func, args, kwargs, out)
        return
    dims = _indexed_axes(positions)
    source = args[0]
    layers = []
    for layer in without(tr, source, dims, 'picked by computed positions'):
        rest = beside_labels(args[1:])
        picked = func(canonical(layer), *rest, **kwargs)
        layers.append(picked if out.numel() else resized_to(layer, out))
    tr.set(out, layers, tr.tag(source).weight)


def resized_to(layer: Tensor, out: Tensor) -> Tensor:
    """Returns empty labels in the shape of a result without elements."""
    return torch.full((), -1, dtype=torch.int64).expand(out.shape)


def _indexed_axes(positions: Sequence[Tensor | None]) -> list[int]:
    """Returns the indexed axes; a mask indexes one axis per dimension."""
    dims: list[int] = []
    axis = 0
    for position in positions:
        width = 1
        if position is not None:
            if position.dtype in (torch.bool, torch.uint8):
                width = position.dim()
            dims += range(axis, axis + width)
        axis += width
    return dims


def index_along(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``index_select`` and ``gather``: pick positions along one axis."""
    source = args[0]
    positions = argument('index', func, args, kwargs)
    if not tr.layers(positions):
        structure(tr, func, args, kwargs, out)
        return
    dim = argument('dim', func, args, kwargs) % max(1, source.dim())
    layers = without(tr, source, [dim], 'picked by computed positions')
    tr.set(out, [resized(layer, out.shape) for layer in layers])


def embedding(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``F.embedding``: picks rows of a table."""
    table, positions = args[:2]
    if not tr.layers(positions):
        structure(tr, func, args, kwargs, out)
        return
    layers = without(tr, table, [0], 'picked by computed positions')
    lead = (1,) * (out.dim() - 1)
    rows = [layer[0].view(*lead, -1).expand(out.shape) for layer in layers]
    tr.set(out, rows, tr.tag(table).weight)


def order(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """``sort``, ``topk``, ``cummax``: computed order along one axis."""
    source = args[0]
    dim = argument('dim', func, args, kwargs)
    dim = -1 if dim is None else dim
    dims = [dim % source.dim()] if source.dim() else []
    layers = without(tr, source, dims, f'{name_of(func)} over these channels')
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        tr.set(result, [resized(layer, result.shape) for layer in layers])


def place(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``x[rows] = values``: the target takes the labels of the values.

    Labels that other rows of the target have already are coupled with them.
    """
    target, positions, values = args[0], args[1], args[2]
    mutable = func._schema.is_mutable
    tag = tr.tag(target)
    new = [
        layer
        for layer in tr.layers(values)
        if not tr.is_opaque(layer) or values.numel() > 1
    ]
    if tag.writable and mutable and len(new) <= 1:
        if new and out.numel() and values.numel():
            places = beside_labels(positions)
            tag.layers[0].index_put_(places, new[0].expand(values.shape))
        return
    dims = set(_indexed_axes(positions))
    merged = list(tr.layers(target))
    for layer in new:
        spread = _as_target(tr, layer, dims, target)
        if spread is None:
            tr.freeze(layer, f'placed at computed positions in {tr.where()}')
            spread = tr.opaque(
                target, f'placed at computed positions in {tr.where()}'
            )
        merged = merge(tr, merged, spread)
    tr.set(out, merged)


def _as_target(
    tr: LabelTracer, layer: Tensor, dims: set[int], target: Tensor
) -> Tensor | None:
    """Returns labels of values in the target's shape; None if rows matter."""
    tail = target.dim() - (max(dims) + 1 if dims else 0)
    varying = {d - layer.dim() for d in tr.varying(layer)}
    if tr.is_opaque(layer) or any(-d > tail for d in varying):
        return None
    for d in range(layer.dim() - tail):
        layer = layer.narrow(d, 0, 1) if layer.shape[d] else layer
    if not layer.numel():
        return None
    while layer.dim() > tail:
        layer = layer.select(0, 0)
    shape = (1,) * (target.dim() - tail) + tuple(layer.shape)
    return layer.reshape(shape).expand(target.shape)
