"""Label rules of operations that move elements, repeated on the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.trees import tree_leaves
from .label_layers import along, canonical, squeezed
from .labels import LabelTracer
from .rules_common import (
    argument,
    beside_labels,
    common_weight,
    name_of,
    unknown,
    whole,
)
from .sizes import Choice, attributes_in


def structure(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Apply the operation to the labels of its first argument."""
    source = args[0]
    tr.layers(source)  # settles pending labels
    tag = tr.tag(source)
    if func in _AS_RESHAPE:
        func = torch.ops.aten.reshape.default
    elif name_of(func) == '_to_copy':  # labels keep their type
        func, kwargs = torch.ops.aten.clone.default, {}
    rest, kwargs = beside_labels((args[1:], kwargs))
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    moved: list[list[Tensor]] = [[] for _ in results]
    picked: list[list[tuple[Tensor, str]]] = [[] for _ in results]
    for layer in tag.layers:
        if not tag.writable and tr.is_opaque(layer):
            only = int(squeezed(layer).flatten()[0])
            for result, into in zip(results, moved):
                into.append(torch.tensor(only).expand(result.shape))
            continue
        pieces = func(layer, *rest, **kwargs)
        many = not tag.writable and bool(tr.varying(layer))
        for i, (piece, into) in enumerate(zip(tree_leaves(pieces), moved)):
            if many and piece.numel() == 1 and not tr.is_opaque(piece):
                reason = f'a single one is picked in {tr.where()}'
                picked[i].append((piece, reason))
                continue
            if func is torch.ops.aten.reshape.default and not tag.writable:
                piece = _split_axis(tr, layer, piece)
            into.append(piece)
    for result, layers, pending in zip(results, moved, picked):
        tr.set(result, layers, tag.weight, tag.writable, pending)


_AS_RESHAPE = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
}


def _split_axis(tr: LabelTracer, before: Tensor, after: Tensor) -> Tensor:
    """A channel axis viewed as (g, C / g).

    If g is fixed in the code (channel shuffle), each of the g rows loses the
    same columns. If g comes from an attribute (``num_heads``) and may become
    smaller, later operations decide whether rows or columns are cut. Rows of
    a fixed length are cut as a whole.
    """
    before, after = canonical(before), canonical(after)
    if len(tr.varying(before)) != 1 or tr.is_opaque(before):
        return after
    dims = sorted(tr.varying(after))
    for i, d in enumerate(dims[:-1]):
        rest = dims[i + 1 :]
        size = tr.sizes.given.get(d)
        fixed = all(type(tr.sizes.given.get(r)) is int for r in rest)
        if attributes_in(size):
            rows = squeezed(after).movedim(d, 0).flatten(1)
            tr.sizes.choices.append(Choice(rows.numpy()))
        elif size == -1 and fixed:
            return whole(tr, after, set(rest))
        else:
            after = _same_rows(tr, after, d)
    return after


def _same_rows(tr: LabelTracer, layer: Tensor, axis: int) -> Tensor:
    """Couple labels that differ only along an axis; return one of each."""
    first = layer.narrow(axis, 0, 1)
    tr.couple(squeezed(first, like=layer).numpy(), squeezed(layer).numpy())
    if bool((squeezed(layer) < 0).any()):
        return layer
    return first.expand(layer.shape)


def split(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Couple the channels at the same place of equal parts of an axis.

    The network computes the length of equal parts from the number of
    channels. Unequal parts have a length fixed in the code and are frozen.
    Lengths that attributes hold are reduced with the channels.
    """
    dim = args[2] if len(args) > 2 else kwargs.get('dim', 0)
    dim %= args[0].dim()
    sizes = [part.shape[dim] for part in out]
    follows = tr.sizes.cuts.issuperset(sizes)
    for layer in () if follows else tr.layers(args[0]):
        if dim not in tr.varying(layer) or tr.is_opaque(layer):
            continue
        if len(set(sizes)) > 1:
            tr.freeze(
                layer,
                f'split into parts of {sizes} channels, fixed '
                f'in the code of {tr.where()}',
            )
        else:
            in_step(tr, along(layer, dim), len(sizes))
    structure(tr, func, args, kwargs, out)


def cut(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """A slice that is one of several equal parts counts as a split.

    Every k-th channel is such a part, too: k neighbours are coupled.
    """
    source = args[0]
    dim, start, step = (
        argument(name, func, args, kwargs) for name in _CUT_ARGUMENTS
    )
    dim, start, step = (dim or 0) % source.dim(), start or 0, step or 1
    size, part = source.shape[dim], out.shape[dim]
    ends = {start, start + part, start + part - size}
    follows = ends & tr.sizes.cuts  # an attribute holds the position
    if 0 < part < size and size % part == 0 and not follows:
        for layer in tr.layers(source):
            if dim not in tr.varying(layer) or tr.is_opaque(layer):
                continue
            if step * part == size:
                rows = along(layer, dim).reshape(part, step)
                tr.couple(rows[:, :1], rows)
            elif step == 1 and start % part == 0:
                in_step(tr, along(layer, dim), size // part)
    structure(tr, func, args, kwargs, out)


_CUT_ARGUMENTS = ('dim', 'start', 'step')


def in_step(tr: LabelTracer, labels: np.ndarray, parts: int) -> None:
    """Couple the channels at the same place of each of several parts."""
    columns = labels.reshape(parts, -1)
    tr.couple(columns[:1], columns)


def restride(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """``as_strided_`` of the same sizes: another layout, the same elements."""
    layers = tr.tag(args[0]).layers
    if any(layer.shape != out.shape for layer in layers):
        unknown(tr, func, args, kwargs, out)


def channel_shuffle(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """A shuffle in a fixed number of rows: their columns are coupled."""
    for layer in tr.layers(args[0]):
        if 1 in tr.varying(layer) and not tr.is_opaque(layer):
            in_step(tr, along(layer, 1), args[1])
    structure(tr, func, args, kwargs, out)


def join(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Concatenation: layers are matched by the axes along which they vary.

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
    tr.set(out, layers, common_weight(tr, parts))


def pad(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Tensor
) -> None:
    """Constant padding.

    Along an axis where the label does not change, the border belongs to the
    same channel. Along the channel axis, the number of added channels is
    fixed in the code: they are frozen.
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
    tr.set(out, layers, tr.tag(source).weight)
