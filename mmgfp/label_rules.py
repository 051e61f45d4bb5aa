"""What each operation does to channel labels.

A rule is a function ``(tracer, func, args, kwargs, out)`` that sets the
labels of ``out`` and tells the tracer which slots are coupled or frozen.
:func:`find_rule` picks it; an operation without a rule freezes what it
touches, with its name as the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .labels import LabelTracer, Rule, along, canonical, spread, squeezed

# -- element-wise operations -------------------------------------------------


def pointwise(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Labels that meet at an element are coupled.

    Layers that differ along different axes (a channel label and a positional
    table's token label) do not meet: the result keeps both.
    """
    operands = [
        t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
    ]
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    shape = results[0].shape
    merged: list[Tensor] = []
    for operand in operands:
        if len(operand.shape) > len(shape):
            continue
        for layer in tr.layers(operand):
            merged = _merge(tr, merged, layer.expand(shape))
    weight = _common_weight(tr, operands)
    target = tr.tag(args[0]) if func._schema.is_mutable else None
    if target is not None and target.writable:
        _write(tr, target.layers[0], merged)
        return
    for result in results:
        tr.set(result, merged, weight)


def _write(tr: LabelTracer, target: Tensor, layers: list[Tensor]) -> None:
    """Write labels into a fresh tensor, or a view that its base sees."""
    if len(layers) == 1:
        target.copy_(layers[0])
        return
    for layer in layers:  # there is room for one label per element
        tr.freeze(
            layer,
            f'written into a new tensor in {tr.where()}, on top of others',
        )


def _merge(tr: LabelTracer, layers: list[Tensor], new: Tensor) -> list[Tensor]:
    """Add a layer of full shape to others, coupling what meets."""
    rest, dims = [], tr.varying(new)
    for old in layers:
        if not (tr.varying(old) & dims):
            rest.append(old)
            continue
        a, b = _shrink(old, new)
        tr.couple(a.numpy(), b.numpy())
        if tr.is_opaque(old):
            new = torch.where(a >= 0, a, b).expand(new.shape)
        else:
            new = torch.where(b >= 0, b, a).expand(new.shape)
        dims |= tr.varying(new)
    return [*rest, new]


def _shrink(*layers: Tensor) -> tuple[Tensor, ...]:
    """Drop the axes along which none of the layers differs."""
    for d, n in enumerate(layers[0].shape):
        if n > 1 and all(t.stride(d) == 0 for t in layers):
            layers = tuple(t.narrow(d, 0, 1) for t in layers)
    return layers


def _common_weight(tr: LabelTracer, operands: Sequence[Tensor]) -> str | None:
    """The one parameter behind all labelled operands, if there is one."""
    names = {tr.tag(t).weight for t in operands if tr.layers(t)}
    return names.pop() if len(names) == 1 else None


# -- structure operations ----------------------------------------------------


def structure(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """The operation itself, on the labels of its first argument."""
    source = args[0]
    tag = tr.tag(source)
    if func in _AS_RESHAPE:
        func = torch.ops.aten.reshape.default
    elif _name(func) == '_to_copy':  # labels keep their type
        func, kwargs = torch.ops.aten.clone.default, {}
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    moved: list[list[Tensor]] = [[] for _ in results]
    for layer in tag.layers:
        pieces = func(layer, *args[1:], **kwargs)
        for piece, into in zip(tree_leaves(pieces), moved):
            into.append(piece)
            if func is torch.ops.aten.reshape.default and not tag.writable:
                _split_axis(tr, layer, piece)
    for result, layers in zip(results, moved):
        tr.set(result, layers, tag.weight, tag.writable)


def _split_axis(tr: LabelTracer, before: Tensor, after: Tensor) -> None:
    """A channel axis viewed as (g, C / g): columns go together.

    Code that does this (channel shuffle) divides by a fixed g, so each of the
    g rows has to lose the same columns.
    """
    before, after = canonical(before), canonical(after)
    if len(tr.varying(before)) != 1 or tr.is_opaque(before):
        return
    dims = sorted(tr.varying(after))
    if len(dims) > 1:
        tr.couple(
            squeezed(after.narrow(dims[0], 0, 1), like=after).numpy(),
            squeezed(after).numpy(),
        )


def split(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Equal parts of a channel axis lose channels in step.

    The network computes where to cut from the number of channels, or has the
    number written into its code; unequal parts can only be the latter.
    """
    dim = args[2] if len(args) > 2 else kwargs.get('dim', 0)
    dim %= args[0].dim()
    for layer in tr.layers(args[0]):
        if dim not in tr.varying(layer) or tr.is_opaque(layer):
            continue
        sizes = [part.shape[dim] for part in out]
        if len(set(sizes)) > 1:
            tr.freeze(
                layer,
                f'split into parts of {sizes} channels, fixed '
                f'in the code of {tr.where()}',
            )
        else:
            _in_step(tr, along(layer, dim), len(sizes))
    structure(tr, func, args, kwargs, out)


def cut(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """A slice that is one of several equal parts counts as a split.

    Every k-th channel is such a part too: k neighbours go together.
    """
    source = args[0]
    dim, start, step = (
        _argument(name, func, args, kwargs) for name in _CUT_ARGUMENTS
    )
    dim, start, step = (dim or 0) % source.dim(), start or 0, step or 1
    whole, part = source.shape[dim], out.shape[dim]
    if part < whole and part and whole % part == 0:
        for layer in tr.layers(source):
            if dim not in tr.varying(layer) or tr.is_opaque(layer):
                continue
            if step * part == whole:
                rows = along(layer, dim).reshape(part, step)
                tr.couple(rows[:, :1], rows)
            elif step == 1 and start % part == 0:
                _in_step(tr, along(layer, dim), whole // part)
    structure(tr, func, args, kwargs, out)


_CUT_ARGUMENTS = ('dim', 'start', 'step')


def _in_step(tr: LabelTracer, labels: np.ndarray, parts: int) -> None:
    columns = labels.reshape(parts, -1)
    tr.couple(columns[:1], columns)


def channel_shuffle(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """A shuffle in a fixed number of rows: their columns go together."""
    for layer in tr.layers(args[0]):
        if 1 in tr.varying(layer) and not tr.is_opaque(layer):
            _in_step(tr, along(layer, 1), args[1])
    structure(tr, func, args, kwargs, out)


def join(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Concatenation: layers are matched by the axes along which they differ.

    Parts without labels are filled with -1, which a consumer freezes.
    """
    parts = list(args[0])
    stacks: list[dict[int, Tensor]] = []
    keys: list[set[int]] = []
    axis = args[1] if len(args) > 1 else kwargs.get('dim', 0)
    axis %= out.dim()
    for i, part in enumerate(parts):
        for layer in tr.layers(part):
            dims = tr.varying(layer) or {axis}
            for stack, key in zip(stacks, keys):
                if key & dims and i not in stack:
                    stack[i] = layer
                    key |= dims
                    break
            else:
                stacks.append({i: layer})
                keys.append(set(dims))
    layers = []
    for stack in stacks:
        blanks = [torch.tensor(-1).expand(p.shape) for p in parts]
        filled = [stack.get(i, blank) for i, blank in enumerate(blanks)]
        layers.append(func(filled, *args[1:], **kwargs))
    tr.set(out, layers, _common_weight(tr, parts))


def pad(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Constant padding.

    Along an axis where the label does not change, the border belongs to the
    same channel. Along the channel axis the network adds channels of its own,
    in a number written into its code: they must stay.
    """
    source, widths = args[0], list(args[1])
    padded = {source.dim() - 1 - i // 2 for i, w in enumerate(widths) if w}
    layers = []
    for layer in tr.layers(source):
        inner = padded & tr.varying(layer)
        if tr.is_opaque(layer):
            inner = set()
        only = [
            w if source.dim() - 1 - i // 2 in inner else 0
            for i, w in enumerate(widths)
        ]
        fill = int(
            tr.opaque(
                out,
                'meets zero-padded channels, whose number '
                'is fixed in the code',
            ).max()
        )
        grown = torch.ops.aten.constant_pad_nd.default(layer, only, fill)
        for d in padded - inner:
            grown = grown.narrow(d, 0, 1)
        layers.append(grown.expand(out.shape))
    tr.set(out, layers)


def index(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Indexing by constants moves labels; by computed values, unknown."""
    others = [
        t for t in tree_leaves((args[1:], kwargs)) if isinstance(t, Tensor)
    ]
    if any(tr.layers(t) for t in others):
        unknown(tr, func, args, kwargs, out)
    else:
        structure(tr, func, args, kwargs, out)


# -- operations that keep channels apart -------------------------------------


def spatial(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Pooling and interpolation of (N, C, *) tensors."""
    source = args[0]
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    channel = source.dim() - (results[0].dim() - 2) - 1
    layers = _without(
        tr,
        source,
        range(channel + 1, source.dim()),
        f'{_name(func)} over them',
    )
    for result in results:
        tr.set(result, [_resized(layer, result.shape) for layer in layers])


def reduction(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Sums, means and extrema keep the labels of the axes that remain."""
    source = args[0]
    dims = _reduced_dims(source, func, args, kwargs)
    layers = _without(tr, source, dims, f'{_name(func)} over them')
    weight = tr.tag(source).weight
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        if result.dim() == source.dim():
            moved = [_resized(layer, result.shape) for layer in layers]
        else:
            moved = [_drop(layer, dims) for layer in layers]
        tr.set(result, moved, weight)


def _reduced_dims(
    source: Tensor, func: Any, args: tuple, kwargs: dict
) -> list[int]:
    dims = _argument('dim', func, args, kwargs)
    if dims is None or dims == []:
        return list(range(source.dim()))
    dims = [dims] if isinstance(dims, int) else dims
    return [d % source.dim() for d in dims]


def _argument(name: str, func: Any, args: tuple, kwargs: dict) -> Any:
    """An argument by name; where it stands differs between operations."""
    for value, argument in zip(args, func._schema.arguments):
        if argument.name == name:
            return value
    return kwargs.get(name)


def softmax(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Softmax mixes along one axis."""
    dim = _argument('dim', func, args, kwargs) % out.dim()
    layers = _without(tr, args[0], [dim], f'{_name(func)} over them')
    tr.set(out, layers)


def _without(
    tr: LabelTracer, source: Tensor, dims: Sequence[int], reason: str
) -> list[Tensor]:
    """The layers that do not differ along ``dims``; the others are frozen."""
    layers = []
    for layer in tr.layers(source):
        if tr.is_opaque(layer) or not tr.varying(layer) & set(dims):
            layers.append(layer)
        else:
            tr.freeze(layer, f'{reason} in {tr.where()}')
    return layers


def _resized(layer: Tensor, shape: Sequence[int]) -> Tensor:
    """The layer with the axes whose size changed repeated to fit."""
    for d, (old, new) in enumerate(zip(layer.shape, shape)):
        if old != new:
            layer = layer.narrow(d, 0, 1)
    return layer.expand(tuple(shape))


def _drop(layer: Tensor, dims: Sequence[int]) -> Tensor:
    for d in sorted(dims, reverse=True):
        layer = layer.select(d, 0)
    return layer


# -- normalisation -----------------------------------------------------------


def batch_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Each channel meets its own weight, bias and statistics."""
    source, result = args[0], tree_leaves(out)[0]
    _affine(tr, source, 1, [t for t in args[1:5] if isinstance(t, Tensor)])
    tr.set(result, tr.layers(source))


def group_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """The channels of one norm group go together.

    Whole norm groups can be removed: the statistics of the others do not
    change.
    """
    source, weight, bias, _, channels, _, groups = args[:7]
    _affine(tr, source, 1, [t for t in (weight, bias) if t is not None])
    layers = _without(tr, source, range(2, source.dim()), 'GroupNorm')
    for layer in layers:
        if tr.is_opaque(layer) or 1 not in tr.varying(layer):
            continue
        labels = _rows(tr, layer, 1).reshape(groups, channels // groups)
        tr.couple(labels[:, :1], labels)
        _freeze_holes(tr, labels)
    tr.set(tree_leaves(out)[0], layers)


def layer_norm(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Statistics over the normalised axes change when one channel goes."""
    source, shape, weight, bias = args[:4]
    first = source.dim() - len(shape)
    for tensor in (weight, bias):
        if tensor is not None:
            merged = [
                layer.expand(source.shape) for layer in tr.layers(source)
            ]
            for layer in tr.layers(tensor):
                _merge(tr, merged, layer.expand(source.shape))
    layers = []
    for layer in tr.layers(source):
        if tr.varying(layer) & set(range(first, source.dim())):
            tr.freeze(layer, f'LayerNorm over them in {tr.where()}')
        layers.append(layer)
    tr.set(tree_leaves(out)[0], layers)


def _affine(
    tr: LabelTracer, source: Tensor, axis: int, vectors: Sequence[Tensor]
) -> None:
    """Couple per-channel vectors with the labels along ``axis``."""
    for layer in tr.layers(source):
        if axis not in tr.varying(layer):
            continue
        labels = _rows(tr, layer, axis)
        for vector in vectors:
            for own in tr.layers(vector):
                slots = along(own, 0)
                tr.couple(labels, slots)
                tr.freeze(slots[labels < 0], 'normalises a constant')


def _freeze_holes(tr: LabelTracer, labels: np.ndarray) -> None:
    """Freeze the rows of (groups, k) labels in which one is missing."""
    rows = (labels < 0).any(1)
    tr.freeze(labels[rows], 'shares a group with channels that must stay')


# -- operations that mix channels --------------------------------------------


def convolution(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Plain, grouped, depthwise and transposed convolution.

    Plain: the input's labels are coupled with the weight's input axis, the
    output axis issues the labels of the result. Grouped: a convolution group
    is one unit, inputs and outputs together.
    """
    source, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    name = tr.tag(weight).weight
    if name is None:
        unknown(
            tr,
            func,
            args,
            kwargs,
            out,
            'convolution with a kernel that the network computes',
        )
        return
    inputs = _channel_labels(tr, source, 1)
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    if groups == 1:
        consumed = _axis_slots(tr, weight, in_axis)
        _consume(tr, name, consumed, inputs, channel_axis=1)
        labels = _axis_slots(tr, weight, out_axis)
        issue_axis = out_axis
    else:
        labels = _convolution_groups(
            tr, name, weight, inputs, groups, out.shape[1], transposed
        )
        issue_axis = 0
    if labels is not None:
        tr.add_issue(name, issue_axis, out.shape[1])
    _finish_mixing(tr, labels, bias, 1, out)


def _convolution_groups(
    tr: LabelTracer,
    name: str,
    weight: Tensor,
    inputs: np.ndarray,
    groups: int,
    channels: int,
    transposed: bool,
) -> np.ndarray:
    """Couple each convolution group; return the output labels."""
    slots = _axis_slots(tr, weight, 0)
    assert slots is not None
    per_group = slots.reshape(groups, -1)
    labels = inputs.reshape(groups, -1)
    tr.couple(per_group[:, :1], per_group)
    tr.couple(per_group[:, :1], labels)
    holes = (labels < 0).any(1)
    tr.freeze(per_group[holes], 'convolves a constant')
    _freeze_holes(tr, labels)
    first = per_group[:, 0]
    tr.add_use(
        name, 0, True, 1, inputs, np.repeat(first, inputs.size // groups)
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


def _matmul(
    tr: LabelTracer,
    func: Any,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    name = tr.tag(b).weight
    if name is None or tr.tag(a).weight is not None or b.dim() != 2:
        _activation_product(tr, func, a, b, out)
        return
    rows = [
        layer for layer in tr.layers(a) if a.dim() - 1 not in tr.varying(layer)
    ]
    inputs = _channel_labels(tr, a, -1)
    _consume(tr, name, _axis_slots(tr, b, 0), inputs, channel_axis=-1)
    labels = _axis_slots(tr, b, 1)
    if labels is not None:
        tr.add_issue(
            name,
            int(tr.table.axes[int(tr.table.axis_ids(labels[0]))][1]),
            out.shape[-1],
        )
    _finish_mixing(tr, labels, bias, out.dim() - 1, out)
    kept = [
        _resized(layer, out.shape) for layer in rows if not tr.is_opaque(layer)
    ]
    tr.set(out, [*kept, *tr.tag(out).layers])


def _activation_product(
    tr: LabelTracer, func: Any, a: Tensor, b: Tensor, out: Tensor
) -> None:
    """Two computed factors: the summed channels must stay, the others pass."""
    reason = f'summed over by {_name(func)}'
    left = _without(tr, a, [a.dim() - 1], reason)
    right = _without(tr, b, [b.dim() - 2], reason)
    if any(tr.is_opaque(layer) for layer in (*left, *right)):
        unknown(tr, func, (a, b), {}, out)
        return
    layers: list[Tensor] = []
    for layer in (*left, *right):
        layers = _merge(tr, layers, _resized(layer, out.shape))
    tr.set(out, layers)


def _channel_labels(tr: LabelTracer, source: Tensor, axis: int) -> np.ndarray:
    """The labels of the channels that a mixing operation consumes."""
    axis %= source.dim()
    found: np.ndarray = np.full(source.shape[axis], -1)
    for layer in tr.layers(source):
        if axis in tr.varying(layer):
            labels = _rows(tr, layer, axis)
            found = np.where(found < 0, labels, found)
            tr.couple(found, labels)
    return found


def _rows(tr: LabelTracer, layer: Tensor, axis: int) -> np.ndarray:
    """One label per index of an axis, (size,).

    All labels at the same index go together: four channels that became the
    pixels of one (pixel shuffle) leave together, or not at all.
    """
    if tr.is_opaque(layer) or tr.varying(layer) == {axis}:
        return along(layer, axis)
    labels = squeezed(layer).movedim(axis, 0).flatten(1).numpy()
    tr.couple(labels[:, :1], labels)
    holes = (labels < 0).any(1)
    tr.freeze(labels[holes], 'shares a channel with constants')
    return np.where(holes, -1, labels[:, 0])


def _axis_slots(
    tr: LabelTracer, weight: Tensor, axis: int
) -> np.ndarray | None:
    """The slots of a weight along one axis; None if it has size 1."""
    for layer in tr.layers(weight):
        if tr.varying(layer) == {axis}:
            return along(layer, axis)
    return None


def _consume(
    tr: LabelTracer,
    name: str,
    slots: np.ndarray | None,
    inputs: np.ndarray,
    channel_axis: int,
) -> None:
    """Couple a weight's input axis with the labels that come in."""
    if slots is None:
        tr.freeze(inputs, f'the only channel into {tr.where()}')
        return
    tr.couple(inputs, slots)
    tr.freeze(slots[inputs < 0], 'reads the image or another constant')
    axis = int(tr.table.axes[int(tr.table.axis_ids(slots[0]))][1])
    tr.add_use(name, axis, False, channel_axis, inputs, slots)


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


# -- everything else ---------------------------------------------------------


def constant(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Fresh tensors have no labels; what is written into them leaves some."""
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        blank = torch.full(result.shape, -1, dtype=torch.int64)
        tr.set(result, [blank], writable=True)


def overwrite(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``copy_`` and ``fill_``: like element-wise, into the target."""
    pointwise(tr, func, args, kwargs, out)


def unknown(
    tr: LabelTracer,
    func: Any,
    args: tuple,
    kwargs: dict,
    out: Any,
    what: str = '',
) -> None:
    """Freeze everything an operation touches and everything it makes."""
    what = what or f'the operation {_name(func)}, which has no rule,'
    reason = f'{what} in {tr.where()}'
    touched = False
    for operand in tree_leaves((args, kwargs)):
        if isinstance(operand, Tensor):
            for layer in tr.layers(operand):
                tr.freeze(layer, f'goes through {reason}')
                touched = True
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        fresh = [tr.opaque(result, f'comes out of {reason}')]
        tr.set(result, fresh if touched and result.dim() else [])


def _name(func: Any) -> str:
    return func._schema.name.split('::')[-1]


_AS_RESHAPE = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
}

RULES: dict[str, Rule] = {}
for _rule, _ops in {
    structure: """view _unsafe_view reshape _reshape_alias permute transpose t
        squeeze unsqueeze select unbind
        expand repeat flip roll clone contiguous detach alias _to_copy
        lift_fresh pixel_shuffle pixel_unshuffle diagonal view_as movedim tile
        repeat_interleave unfold swapaxes""",
    split: 'split split_with_sizes chunk',
    cut: 'slice narrow',
    join: 'cat stack concat',
    channel_shuffle: 'channel_shuffle native_channel_shuffle',
    pad: 'constant_pad_nd',
    index: 'index index_select gather embedding',
    spatial: """max_pool2d_with_indices max_pool1d_with_indices avg_pool1d
        avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d mkldnn_max_pool2d
        adaptive_max_pool2d max_pool2d upsample_nearest1d upsample_nearest2d
        upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa _upsample_nearest_exact2d upsample_linear1d
        reflection_pad1d reflection_pad2d replication_pad1d
        replication_pad2d""",
    reduction: 'mean sum amax amin max min var std var_mean prod any all '
    'argmax argmin linalg_vector_norm norm logsumexp',
    softmax: '_softmax _log_softmax softmax log_softmax cumsum',
    batch_norm: """native_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training cudnn_batch_norm
        miopen_batch_norm batch_norm_with_update
        _batch_norm_with_update""",
    group_norm: 'native_group_norm',
    layer_norm: 'native_layer_norm',
    convolution: 'convolution _convolution',
    addmm: 'addmm',
    mm: 'mm bmm',
    constant: """zeros ones full empty arange linspace eye rand randn
        new_zeros new_ones new_full new_empty zeros_like ones_like full_like
        empty_like rand_like randn_like empty_strided new_empty_strided
        scalar_tensor tril_indices triu_indices randint randperm
        lift_fresh_copy""",
    overwrite: 'copy_ fill_ zero_ masked_fill masked_fill_ where',
}.items():
    for _op in _ops.split():
        RULES[_op] = _rule


def find_rule(func: Any) -> Rule:
    """The rule of an operation, by its name or its pointwise tag.

    Args:
        func (OpOverload): As handed to ``__torch_dispatch__``.
    """
    name = _name(func)
    rule = RULES.get(name) or RULES.get(name.rstrip('_'))
    if rule in (reduction,) and _is_binary(func):
        return pointwise
    if rule is not None:
        return rule
    if torch.Tag.pointwise in func.tags or name.rstrip('_') in _POINTWISE:
        return pointwise
    return unknown


# Element-wise operations that older torch releases do not tag as such.
_POINTWISE_NAMES = """
    add sub mul div relu relu6 sigmoid tanh silu gelu hardswish
    hardsigmoid hardtanh leaky_relu elu clamp clamp_min clamp_max exp log sqrt
    rsqrt pow abs neg mish softplus threshold maximum minimum eq ne lt gt le ge
    logical_and logical_or logical_not bitwise_not _prelu_kernel sin cos floor
    ceil round erf reciprocal sign native_dropout bernoulli lerp addcmul
    addcdiv rsub remainder floor_divide isnan isinf celu selu prelu
"""
_POINTWISE = frozenset(_POINTWISE_NAMES.split())


def _is_binary(func: Any) -> bool:
    """``max(a, b)`` shares its name with ``max(a)``."""
    return func._overloadname == 'other'
