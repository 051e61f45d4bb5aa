"""Label rules of operations that move elements: they are simply repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .label_layers import along, canonical, squeezed
from .labels import LabelTracer
from .rules_common import argument, common_weight, name_of, unknown
from .trees import tree_leaves


def structure(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """The operation itself, on the labels of its first argument."""
    source = args[0]
    tag = tr.tag(source)
    if func in _AS_RESHAPE:
        func = torch.ops.aten.reshape.default
    elif name_of(func) == '_to_copy':  # labels keep their type
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


_AS_RESHAPE = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
}


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
        argument(name, func, args, kwargs) for name in _CUT_ARGUMENTS
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
    tr.set(out, layers, common_weight(tr, parts))


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
