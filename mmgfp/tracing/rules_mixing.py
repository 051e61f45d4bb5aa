"""Label rules of operations that mix channels: convolutions and products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..groups import layer_of
from ..utils.trees import tree_leaves
from .label_layers import along, spread
from .labels import LabelTracer
from .rules_common import (
    argument,
    freeze_holes,
    merge,
    resized,
    rows_of,
    unknown,
    unmixed,
    without,
)
from .slots import Use


def convolution(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Plain, grouped, depthwise and transposed convolution.

    Plain: the labels of the input are coupled with the weight's input axis;
    the weight's output axis issues the labels of the result. Grouped: the
    inputs and outputs of a convolution group are one unit.
    """
    source, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    if tr.tag(weight).weight is None:
        what = 'convolution with a kernel that the network computes'
        unknown(tr, func, args, kwargs, out, what)
        _issue_lost(tr, weight, 1 if transposed else 0, what)
        return
    convolve(tr, source, weight, bias, groups, out, transposed)


def convolve(
    tr: LabelTracer,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    out: Tensor,
    transposed: bool = False,
) -> None:
    """Set the labels of a convolution with a parameter as kernel."""
    name = tr.tag(weight).weight
    if name is None:
        for operand in (source, weight):
            for layer in tr.layers(operand):
                tr.freeze(layer, f'the kernel of {tr.where()} is computed')
        tr.set(out, [tr.opaque(out, f'comes out of {tr.where()}')])
        what = 'convolution with a kernel that the network computes'
        _issue_lost(tr, weight, 1 if transposed else 0, what)
        return
    for layer in tr.layers(source):
        over = tr.varying(layer)
        if not tr.is_opaque(layer) and 1 not in over and over - {0}:
            reason = f'the convolution {tr.where()} runs over these channels'
            tr.freeze(layer, reason)
    inputs, blank = _channel_labels(tr, source, 1), _blank(tr, source)
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    if groups == 1:
        consumed = _axis_slots(tr, weight, in_axis)
        _consume(tr, name, consumed, inputs, 1, blank)
        labels = _axis_slots(tr, weight, out_axis)
    else:
        labels = _convolution_groups(
            tr,
            name,
            weight,
            inputs,
            groups,
            out.shape[1],
            transposed,
            blank,
        )
    if labels is not None:
        tr.record.issued.setdefault(_stored(tr, labels), out.shape[1])
    _finish_mixing(tr, labels, bias, 1, out)


def _issue_lost(tr: LabelTracer, kernel: Tensor, axis: int, what: str) -> None:
    """Register and freeze the outputs of a layer whose kernel has no labels.

    The axis of the parameter is found by a remaining label, else by the
    number of outputs, else it is the first.
    """
    slots = _axis_slots(tr, kernel, axis % kernel.dim())
    if slots is not None and 0 <= slots[0] < len(tr.table):
        weight, own = _stored(tr, slots)
    else:
        count = kernel.shape[axis]
        axes = [
            (name, d, size)
            for name in tr.tag(kernel).sources or ()
            for d, size in enumerate(tr.table.tensors[name].shape)
            if size > 1
        ]
        if not axes:
            return
        weight, own, _ = min(axes, key=lambda found: found[2] != count)
    reason = f'goes through {what} in {tr.where()}'
    tr.freeze(tr.table.slots(weight, own), reason)
    tr.record.issued.setdefault((weight, own), kernel.shape[axis])


def _convolution_groups(
    tr: LabelTracer,
    name: str,
    weight: Tensor,
    inputs: np.ndarray,
    groups: int,
    channels: int,
    transposed: bool,
    blank: str,
) -> np.ndarray:
    """Couple each convolution group; return the output labels."""
    slots = _axis_slots(tr, weight, 0)
    assert slots is not None
    per_group = slots.reshape(groups, -1)
    labels = inputs.reshape(groups, -1)
    tr.couple(per_group[:, :1], per_group)
    tr.couple(per_group[:, :1], labels)
    holes = (labels < 0).any(1)
    tr.freeze(per_group[holes], blank)
    freeze_holes(tr, labels)
    first = per_group[:, 0]
    _add_use(
        tr, name, 0, True, 1, inputs, np.repeat(first, inputs.size // groups)
    )
    if transposed:
        return np.repeat(first, channels // groups)
    return slots


def addmm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``bias + a @ b``: a linear layer."""
    bias, a, b = args[:3]
    _matmul(tr, func, a, b, bias, out)


def mm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``a @ b`` of matrices, batched or not."""
    _matmul(tr, func, args[0], args[1], None, out)


def mv(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``a @ b`` of a matrix and a vector, or of two vectors.

    A product of weights alone is part of a norm, such as a spectral norm.
    """
    what = 'a product with a single vector'
    if all(tr.tag(factor).weight is not None for factor in args[:2]):
        what = 'a norm of the whole weight'
    unknown(tr, func, args, kwargs, out, what)


def _matmul(
    tr: LabelTracer,
    func: Any,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    name = tr.tag(b).weight
    if (
        name is None
        or (bias is None and tr.tag(a).weight is not None)
        or not _is_matrix(tr, name, b)
    ):
        _activation_product(tr, func, a, b, out)
        return
    rows = [
        layer for layer in tr.layers(a) if a.dim() - 1 not in tr.varying(layer)
    ]
    inputs = _channel_labels(tr, a, -1)
    slots = _axis_slots(tr, b, b.dim() - 2)
    _consume(tr, name, slots, inputs, -1, _blank(tr, a))
    labels = _axis_slots(tr, b, b.dim() - 1)
    if labels is not None:
        tr.record.issued.setdefault(_stored(tr, labels), out.shape[-1])
    _finish_mixing(tr, labels, bias, out.dim() - 1, out)
    kept = [
        resized(layer, out.shape) for layer in rows if not tr.is_opaque(layer)
    ]
    tr.set(out, [*kept, *tr.tag(out).layers])


def _is_matrix(tr: LabelTracer, name: str, factor: Tensor) -> bool:
    """Returns whether a factor is one matrix, or one repeated in a batch.

    Linear layers repeat their weight if the input has no view as a matrix.
    """
    if factor.dim() == 2:
        return True
    repeated = all(0 not in tr.varying(layer) for layer in tr.layers(factor))
    return repeated and tr.table.tensors[name].dim() == 2


def _activation_product(
    tr: LabelTracer, func: Any, a: Tensor, b: Tensor, out: Tensor
) -> None:
    """A product of two computed factors: its summed channels are frozen."""
    reason = 'summed over by a product of activations'
    left = without(tr, a, [a.dim() - 1], reason)
    right = without(tr, b, [b.dim() - 2], reason)
    if any(tr.is_opaque(layer) for layer in (*left, *right)):
        what = 'a product with something that is not known,'
        unknown(tr, func, (a, b), {}, out, what)
        made = [bool(tr.tag(factor).sources) for factor in (a, b)]
        for factor, axis, other in ((a, -2, made[1]), (b, -1, made[0])):
            if not other:  # a product of two weights is no layer
                _issue_lost(tr, factor, axis, what)
        return
    layers: list[Tensor] = []
    for layer in (*left, *right):
        layers = merge(tr, layers, resized(layer, out.shape))
    tr.set(out, layers)


def attention(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """``softmax(q @ k^T + mask) @ v``: heads are cut as a whole.

    The channels that a head sums over are coupled with the head. Query heads
    that share a head of key and value are coupled.
    """
    query, key, value = args[:3]
    result = tree_leaves(out)[0]
    tokens = value.dim() - 2
    shape = (*result.shape[:-1], value.shape[tokens])
    reason = 'summed over by an attention'
    weights: list[Tensor] = []
    for layer in without(tr, query, [query.dim() - 1], reason):
        weights = merge(tr, weights, resized(layer, shape))
    for layer in without(tr, key, [key.dim() - 1], reason):
        layer = _for_each_query(layer.mT, shape)
        weights = merge(tr, weights, resized(layer, shape))
    for name in ('attn_mask', 'attn_bias'):
        mask = argument(name, func, args, kwargs)
        for layer in () if mask is None else tr.layers(mask):
            weights = merge(tr, weights, layer.expand(shape))
    merged: list[Tensor] = []
    for layer in (
        *unmixed(tr, weights, [len(shape) - 1], 'softmax over these channels'),
        *without(tr, value, [tokens], reason),
    ):
        layer = _for_each_query(layer, shape)
        merged = merge(tr, merged, resized(layer, result.shape))
    tr.set(result, merged)
    for other in tree_leaves(out)[1:]:
        if isinstance(other, Tensor):
            tr.set(other, [])


def _for_each_query(layer: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns labels of key or value heads, repeated per query head."""
    heads = layer.dim() - 3
    times = shape[heads] // layer.shape[heads] if heads > 0 else 1
    return layer.repeat_interleave(times, heads) if times > 1 else layer


def batched_add(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``c + a @ b`` of computed factors."""
    _activation_product(tr, func, args[1], args[2], out)
    merged = list(tr.layers(out))
    for layer in tr.layers(args[0]):
        merged = merge(tr, merged, layer.expand(out.shape))
    tr.set(out, merged)


def _channel_labels(tr: LabelTracer, source: Tensor, axis: int) -> np.ndarray:
    """Returns the labels of consumed channels, (size,); -1 for none."""
    axis %= source.dim()
    found: np.ndarray = np.full(source.shape[axis], -1)
    for layer in tr.layers(source):
        if axis in tr.varying(layer):
            labels = rows_of(tr, layer, axis)
            found = np.where(found < 0, labels, found)
            tr.couple(found, labels)
    return found


def _blank(tr: LabelTracer, source: Tensor) -> str:
    """Returns why an input may have no labels along the consumed axis."""
    if tr.layers(source):
        return 'reads positions or other fixed numbers of values, no channels'
    return 'reads the image or another constant'


def _axis_slots(
    tr: LabelTracer, weight: Tensor, axis: int
) -> np.ndarray | None:
    """Returns the slots of a weight's axis, (size,); None for size 1."""
    for layer in tr.layers(weight):
        if tr.varying(layer) == {axis}:
            return along(layer, axis)
    return None


def _stored(tr: LabelTracer, slots: np.ndarray) -> tuple[str, int]:
    """Returns the parameter and its axis to which kernel labels belong."""
    return tr.table.axes[int(tr.table.axis_ids(slots[0]))]


def _consume(
    tr: LabelTracer,
    name: str,
    slots: np.ndarray | None,
    inputs: np.ndarray,
    channel_axis: int,
    blank: str,
) -> None:
    """Couple a weight's input axis with the labels of the input.

    Slots without a label are frozen with the reason ``blank``.
    """
    if slots is None:
        tr.freeze(inputs, f'the only channel into {tr.where()}')
        return
    tr.couple(inputs, slots)
    tr.freeze(slots[inputs < 0], blank)
    _add_use(
        tr, name, _stored(tr, slots)[1], False, channel_axis, inputs, slots
    )


def _finish_mixing(
    tr: LabelTracer,
    labels: np.ndarray | None,
    bias: Tensor | None,
    axis: int,
    out: Tensor,
) -> None:
    if labels is None:
        tr.set(out, [])
        return
    if bias is not None:
        for own in tr.layers(bias):
            slots = along(own, own.dim() - 1)
            tr.couple(labels[: slots.size], slots)
    tr.set(out, [spread(labels, axis, out.shape)])


def _add_use(
    tr: LabelTracer,
    weight: str,
    axis: int,
    grouped: bool,
    channel_axis: int,
    input_labels: np.ndarray,
    slots: np.ndarray,
) -> None:
    """Register ``weight`` as a consumer of channels in this call."""
    module = _observable(tr, weight, channel_axis, input_labels)
    use = Use(
        weight,
        axis,
        grouped,
        module,
        channel_axis,
        tuple(int(s) for s in slots),
    )
    key = (weight, axis, use.slots)
    known = tr.record.uses.get(key)
    if known is None or known.module is not None:
        tr.record.uses[key] = use


def _observable(
    tr: LabelTracer, weight: str, channel_axis: int, input_labels: np.ndarray
) -> str | None:
    """Returns the module that owns the weight and receives the channels."""
    if not tr.stack:
        return None
    frame = tr.stack[-1]
    name = tr.module_names.get(id(frame.module))
    if name is None or layer_of(weight) != name:
        return None
    for layer in () if frame.source is None else tr.layers(frame.source):
        dims = {d % layer.dim() for d in tr.varying(layer)}
        axis = channel_axis % layer.dim()
        if axis in dims and not tr.is_opaque(layer):
            mine = along(layer, axis)
            if (
                mine.shape == input_labels.shape
                and (mine == input_labels).all()
            ):
                return name
    return None
