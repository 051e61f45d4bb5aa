"""Functions that several label rules use.

A rule is a function ``(tracer, func, args, kwargs, out)`` that sets the labels
of ``out`` and records coupled and frozen slots in the tracer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.trees import tree_leaves, tree_map_only
from .label_layers import along, canonical, squeezed
from .labels import LabelTracer


def unknown(
    tr: LabelTracer,
    func: Any,
    args: tuple,
    kwargs: dict,
    out: Any,
    what: str = '',
    advice: str = '',
) -> None:
    """Freeze the labels of an operation's operands and results.

    A reason with advice takes precedence in reports.
    """
    what = what or f'the operation {name_of(func)}, which has no rule,'
    reason = f'{what} in {tr.where()}{advice}'
    touched = False
    for operand in tree_leaves((args, kwargs)):
        if isinstance(operand, Tensor):
            for layer in tr.layers(operand):
                tr.freeze(layer, f'goes through {reason}', bool(advice))
                touched = True
    for result in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        fresh = [tr.opaque(result, f'comes out of {reason}')]
        tr.set(result, fresh if touched and result.dim() else [])


def fake_quantised(
    tr: LabelTracer, func: Any, args: tuple, kwargs: dict, out: Any
) -> None:
    """Freeze channels of fake-quantised tensors.

    The observed scales and their observers are not cut with the channels.
    """
    name = name_of(func).strip('_').partition('_cachemask')[0]
    name = name.replace('_fq_helper', '_fake_quant')  # the public name
    what = f'the fake quantisation {name}'
    advice = ': prune first, then quantise'
    unknown(tr, func, args, kwargs, out, what, advice)


_MOST_PICKED = 4


def merge(tr: LabelTracer, layers: list[Tensor], new: Tensor) -> list[Tensor]:
    """Add a layer of full shape to others, coupling labels that coincide.

    Layers coincide where they vary along a common axis.
    """
    rest, dims = [], tr.varying(new)
    if not dims and layers:  # one label everywhere: no common axis
        if tr.is_opaque(new):
            return layers
        if len(layers) > _MOST_PICKED:  # losses pick thousands of elements
            tr.freeze(new, f'a single one is picked in {tr.where()}')
            return layers
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
    """Drop the axes along which no layer varies."""
    for d, n in enumerate(layers[0].shape):
        if n > 1 and all(t.stride(d) == 0 for t in layers):
            layers = tuple(t.narrow(d, 0, 1) for t in layers)
    return layers


def common_weight(tr: LabelTracer, operands: Sequence[Tensor]) -> str | None:
    """Returns the parameter of the largest labelled operand.

    Returns None if any labelled operand is an activation. Of operands of
    equal size the last counts, as in :func:`merge`.
    """
    found = [(t.numel(), tr.tag(t).weight) for t in operands if tr.layers(t)]
    names = [name for _, name in sorted(found, key=lambda pair: pair[0])]
    return None if None in names or not names else names[-1]


def without(
    tr: LabelTracer, source: Tensor, dims: Sequence[int], reason: str
) -> list[Tensor]:
    """Returns the layers of a source that do not vary along ``dims``.

    Layers that vary along ``dims`` alone are frozen and left out. In layers
    that also vary along other axes, such as the heads of an attention, the
    labels along ``dims`` are coupled: cutting a whole head does not change
    the sums of the other heads.
    """
    return unmixed(tr, tr.layers(source), dims, reason)


def unmixed(
    tr: LabelTracer, layers: Sequence[Tensor], dims: Sequence[int], reason: str
) -> list[Tensor]:
    """:func:`without` for given layers."""
    kept = []
    for layer in layers:
        mixed = set() if tr.is_opaque(layer) else tr.varying(layer) & set(dims)
        if not mixed:
            kept.append(layer)
        elif has_rows(tr, layer, mixed):
            kept.append(whole(tr, layer, mixed))
        else:
            tr.freeze(layer, f'{reason} in {tr.where()}')
    return kept


def has_rows(tr: LabelTracer, layer: Tensor, dims: set[int]) -> bool:
    """Returns whether ``dims`` span one row of a layer, such as one head.

    All rows must have different labels. A class token in front of other
    tokens makes no rows: the other tokens have equal labels.
    """
    if not tr.varying(layer) - dims:
        return False
    for d in dims:
        layer = layer.narrow(d, 0, 1)
    counts = np.unique(squeezed(layer).numpy(), return_counts=True)[1]
    return bool((counts == counts[0]).all())


def whole(tr: LabelTracer, layer: Tensor, dims: set[int]) -> Tensor:
    """Couple labels that differ only along ``dims``; return one of each."""
    first = layer
    for d in dims:
        first = first.narrow(d, 0, 1)
    a, b = _shrink(first.expand(layer.shape), layer)
    tr.couple(a.numpy(), b.numpy())
    holes = layer < 0
    for d in dims:
        holes = holes.any(d, keepdim=True)
    if bool(holes.any()):
        holes = holes.expand(layer.shape)
        tr.freeze(layer[holes], 'goes together with constants')
        first = torch.where(holes, -1, first.expand(layer.shape))
    return canonical(first.expand(layer.shape))


def resized(layer: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the layer expanded along the axes whose size changed."""
    for d, (old, new) in enumerate(zip(layer.shape, shape)):
        if old != new:
            layer = layer.narrow(d, 0, 1)
    return layer.expand(tuple(shape))


def freeze_holes(tr: LabelTracer, labels: np.ndarray) -> None:
    """Freeze the rows of (groups, k) labels with a missing label."""
    rows = (labels < 0).any(1)
    tr.freeze(labels[rows], 'shares a group with channels that must stay')


def argument(name: str, func: Any, args: tuple, kwargs: dict) -> Any:
    """Returns an argument by name; None if the operation has none such.

    The position of an argument differs between operations.
    """
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if place < len(args):
                return args[place]
            return kwargs.get(name, argument.default_value)
    return None


def beside_labels(arguments: Any) -> Any:
    """Returns arguments with their tensors on the CPU, as labels are."""
    return tree_map_only(Tensor, Tensor.cpu, arguments)


def name_of(func: Any) -> str:
    """Returns the name of an operation without namespace, as ``'add_'``."""
    return func._schema.name.split('::')[-1]


def rows_of(tr: LabelTracer, layer: Tensor, axis: int) -> np.ndarray:
    """Couple all labels at each index of an axis; return one each, (size,).

    Example: pixel shuffle makes the pixels of one channel from four
    channels, which are cut together.
    """
    if tr.is_opaque(layer) or tr.varying(layer) == {axis}:
        return along(layer, axis)
    labels = squeezed(layer).movedim(axis, 0).flatten(1).numpy()
    tr.couple(labels[:, :1], labels)
    holes = (labels < 0).any(1)
    tr.freeze(labels[holes], 'shares a channel with constants')
    return np.where(holes, -1, labels[:, 0])
