"""Label rules of operations that keep channels apart.

Element-wise operations, pooling, interpolation, reductions and normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.trees import tree_leaves
from .label_layers import along, canonical
from .labels import LabelTracer
from .rules_common import (
    argument,
    common_weight,
    freeze_holes,
    has_rows,
    merge,
    name_of,
    resized,
    rows_of,
    unmixed,
    whole,
    without,
)


def pointwise(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Couple the labels of operands at the same element.

    Layers that vary along different axes (a channel label and a positional
    table's token label) are not coupled: the result has both.
    """
    operands = [
        t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
    ]
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    if not results:
        return
    if name_of(func) == 'mul' and any(
        a is not None and _is_zero(a) for a in args
    ):
        tr.set(out, [])
        tr.tag(out).absent = tuple(
            labels
            for tag in map(tr.tag, operands)
            for labels, _ in tag.pending
            # sums of weights times zero only keep parameters in use
            if tag.weight is None
        )
        return
    absent = tuple(x for t in operands for x in tr.tag(t).absent)
    shape = results[0].shape
    merged: list[Tensor] = []
    unknown: list[Tensor] = []
    # where labels are coupled, the result has those of the largest operand
    for operand in sorted(operands, key=Tensor.numel):
        if len(operand.shape) > len(shape):
            continue
        for layer in tr.layers(operand):
            if tr.is_opaque(layer):
                unknown.append(layer)
            else:
                merged = merge(tr, merged, layer.expand(shape))
    for layer in unknown:
        # a mask that is constant over all channels is not coupled with them
        ahead = len(shape) - layer.dim()
        own = {d + ahead for d, n in enumerate(layer.shape) if n > 1}
        if not merged or any(tr.varying(other) & own for other in merged):
            merged = merge(tr, merged, layer.expand(shape))
    weight = common_weight(tr, operands)
    target = tr.tag(args[0]) if func._schema.is_mutable else None
    if target is not None and target.writable:
        _write(tr, target.layers[0], merged)
    else:
        for result in results:
            tr.set(result, merged, weight)
    if absent and results[0].numel() > 1:
        present = tr.tag(results[0]).layers  # later rules may extend the list
        tr.record.absent.append((absent, present, tr.where()))
    elif absent:
        tr.tag(results[0]).absent = absent


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _write(tr: LabelTracer, target: Tensor, layers: list[Tensor]) -> None:
    """Write labels into the labels of a fresh tensor or of a view of it."""
    if len(layers) == 1:
        target.copy_(layers[0])
        return
    for layer in layers:  # the target holds one label per element
        tr.freeze(
            layer,
            f'written into a new tensor in {tr.where()}, on top of others',
        )


def overwrite(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``copy_`` and ``fill_``: element-wise, written into the target."""
    pointwise(tr, func, args, kwargs, out)


def constant(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """A fresh tensor has no labels until labelled values are written."""
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        blank = torch.full(result.shape, -1, dtype=torch.int64)
        tr.set(result, [blank], writable=True)


def spatial(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Pooling and interpolation of ``(N, C, *)`` tensors.

    Further arguments of the same shape, such as the indices of unpooling,
    have the same channels.
    """
    name, shape = name_of(func), args[0].shape
    (dims,) = map(int, re.findall(r'(\d)d', name))
    layers: list[Tensor] = []
    for source in args:
        if isinstance(source, Tensor) and source.shape == shape:
            axes = range(source.dim() - dims, source.dim())
            reason = f'{name} over these channels'
            for layer in without(tr, source, axes, reason):
                layers = merge(tr, layers, layer)
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        tr.set(result, [resized(layer, result.shape) for layer in layers])


def halves(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``F.glu``: the first half of an axis is multiplied with the second."""
    dim = argument('dim', func, args, kwargs)
    merged: list[Tensor] = []
    for layer in tr.layers(args[0]):
        for half in layer.chunk(2, dim):
            merged = merge(tr, merged, canonical(half))
    tr.set(out, merged)


def beside_buffer(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Element-wise; only the backward pass reads the second result."""
    pointwise(tr, func, args, kwargs, out[0])
    tr.set(out[1], [])


def unfold(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``F.unfold``: a channel becomes one channel per kernel position."""
    source = args[0]
    channel = source.dim() - 3
    count = out.shape[-2] // source.shape[channel]
    layers = without(
        tr, source, [channel + 1, channel + 2], 'unfolded over these channels'
    )
    moved = []
    for layer in layers:
        layer = layer[..., 0, 0].repeat_interleave(count, dim=-1)
        moved.append(layer[..., None].expand(out.shape))
    tr.set(out, moved)


def fold(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``F.fold``: the kernel positions of a channel become one channel."""
    source = args[0]
    channel = out.dim() - 3
    channels = out.shape[channel]
    moved = []
    for layer in without(
        tr, source, [source.dim() - 1], 'folded over these channels'
    ):
        places = layer[..., 0].unflatten(-1, (channels, -1))
        last = places.dim() - 1
        if last in tr.varying(canonical(places)):
            places = whole(tr, canonical(places), {last})
        moved.append(places[..., :1, None].expand(out.shape))
    tr.set(out, moved)


def reduction(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Sums, means and extrema keep the labels of the remaining axes."""
    source = args[0]
    dims = _reduced_dims(source, func, args, kwargs)
    layers, lost = [], []
    for layer in tr.layers(source):
        mixed = tr.varying(layer) & set(dims)
        if tr.is_opaque(layer) or not mixed:
            layers.append(layer)
        elif has_rows(tr, layer, mixed):
            layers.append(whole(tr, layer, mixed))
        else:  # pending: a later product with zero discards the result
            what = f'{name_of(func)} over these channels in {tr.where()}'
            if tr.tag(source).weight is not None:
                what += ', which computes its kernel from all its inputs'
            lost.append((layer, what))
    weight = tr.tag(source).weight
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        if result.dim() == source.dim():
            moved = [resized(layer, result.shape) for layer in layers]
        else:
            moved = [_drop(layer, dims) for layer in layers]
        tr.set(result, moved, weight, pending=lost)


def _reduced_dims(
    source: Tensor, func: Any, args: tuple, kwargs: dict
) -> list[int]:
    dims = argument('dim', func, args, kwargs)
    if dims is None or dims == []:
        return list(range(source.dim()))
    dims = [dims] if isinstance(dims, int) else dims
    return [d % source.dim() for d in dims]


def softmax(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Softmax mixes the channels along one axis."""
    dim = argument('dim', func, args, kwargs) % out.dim()
    layers = without(
        tr, args[0], [dim], f'{name_of(func)} over these channels'
    )
    tr.set(out, layers)


def _drop(layer: Tensor, dims: Sequence[int]) -> Tensor:
    for d in sorted(dims, reverse=True):
        layer = layer.select(d, 0)
    return layer


def batch_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Couple each channel with its own weight, bias and statistics.

    In training mode (also used to standardise weights) the statistics are
    taken over all other axes.
    """
    source, result = args[0], tree_leaves(out)[0]
    vectors = [t for t in args[1:5] if isinstance(t, Tensor)]
    _affine(tr, source, 1, vectors)
    weight = common_weight(tr, [source, *vectors])
    layers = tr.layers(source)
    if argument('training', func, args, kwargs):
        others = [d for d in range(source.dim()) if d != 1]
        if weight is not None:
            layers = _own_rows(tr, layers, others)
        else:
            layers = tuple(
                unmixed(tr, layers, others, 'statistics of a batch norm')
            )
    tr.set(result, layers, weight)


def weight_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """``v * g / |v|``, with a norm for each index of one axis."""
    direction, length = args[:2]
    axis = argument('dim', func, args, kwargs) or 0
    others = [d for d in range(direction.dim()) if d != axis]
    merged: list[Tensor] = []
    for layer in (
        *tr.layers(length),
        *_own_rows(tr, tr.layers(direction), others),
    ):
        merged = merge(tr, merged, layer.expand(direction.shape))
    weight = common_weight(tr, [direction, length])
    kernel, norms = tree_leaves(out)
    tr.set(kernel, merged, weight)
    tr.set(norms, [])


def _own_rows(
    tr: LabelTracer, layers: Sequence[Tensor], dims: Sequence[int]
) -> tuple[Tensor, ...]:
    """Freeze the labels of a weight that vary along normalised axes.

    The labels themselves do not change.
    """
    for layer in layers:
        if not tr.is_opaque(layer) and tr.varying(layer) & set(dims):
            tr.freeze(
                layer,
                f'one norm over these channels in {tr.where()}, which '
                'computes its kernel',
            )
    return tuple(layers)


def group_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Couple the channels of each norm group.

    Whole norm groups can be cut: the statistics of the other norm groups do
    not change.
    """
    source, weight, bias, _, channels, _, groups = args[:7]
    _affine(tr, source, 1, [t for t in (weight, bias) if t is not None])
    layers = without(tr, source, range(2, source.dim()), 'GroupNorm')
    for layer in layers:
        if tr.is_opaque(layer) or 1 not in tr.varying(layer):
            continue
        labels = rows_of(tr, layer, 1).reshape(groups, channels // groups)
        tr.couple(labels[:, :1], labels)
        freeze_holes(tr, labels)
        if groups == 1:
            tr.freeze(labels, f'GroupNorm of one group in {tr.where()}')
    kernel = common_weight(tr, args[:1])
    tr.set(tree_leaves(out)[0], layers, kernel)


def layer_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Freeze normalised channels: cutting one changes the statistics."""
    source, shape = args[:2]
    affine = [
        layer.expand(source.shape)
        for vector in args[2:4]
        if isinstance(vector, Tensor)  # an RMSNorm has no bias
        for layer in tr.layers(vector)
    ]
    kind = 'RMSNorm' if 'rms' in name_of(func) else 'LayerNorm'
    normalised = set(range(source.dim() - len(shape), source.dim()))
    layers = []
    for layer in tr.layers(source):
        mixed = normalised & tr.varying(layer)
        if mixed and not tr.is_opaque(layer) and has_rows(tr, layer, mixed):
            layer = whole(tr, layer, mixed)  # each head is normalised alone
            for own in affine:
                tr.freeze(own, f'normalises alike in {tr.where()}')
        else:
            for own in affine:
                merge(tr, [layer], own)
            if mixed:
                tr.freeze(layer, f'{kind} over these channels in {tr.where()}')
        layers.append(layer)
    kernel = common_weight(tr, args[:1])
    tr.set(tree_leaves(out)[0], layers, kernel)


def _affine(
    tr: LabelTracer, source: Tensor, axis: int, vectors: Sequence[Tensor]
) -> None:
    """Couple per-channel vectors with the labels along ``axis``."""
    for layer in tr.layers(source):
        if axis not in tr.varying(layer):
            continue
        labels = rows_of(tr, layer, axis)
        for vector in vectors:
            for own in tr.layers(vector):
                slots = along(own, 0)
                tr.couple(labels, slots)
                tr.freeze(slots[labels < 0], 'normalises a constant')
