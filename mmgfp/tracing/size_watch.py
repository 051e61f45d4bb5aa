"""Recording of the sizes that the network's code gives to operations.

The dispatcher passes sizes as plain numbers. A torch function mode sees them
before, with their origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .caches import nothing_remembered
from .label_layers import axis_labels
from .labels import LabelTracer
from .sizes import (
    Extent,
    Size,
    SizeFact,
    attributes_in,
    has_origin,
    term_of,
    traced_attributes,
)

# On some devices torch decomposes an RMSNorm. The rules of its parts cannot
# recognise heads of an attention that are normalised one by one.
_WHOLE = torch.library.Library('mmgfp', 'DEF')
_WHOLE.define(
    '_fused_rms_norm(Tensor input, int[] normalized_shape, '
    'Tensor? weight=None, float? eps=None) -> Tensor'
)
_WHOLE.impl(
    '_fused_rms_norm',
    lambda *args: torch.rms_norm(*args),
    'CompositeExplicitAutograd',
)


Before = Callable[['SizeWatch', tuple, Mapping], None]
# called with the result, too
After = Callable[['SizeWatch', tuple, Mapping, Any, dict], None]


@contextmanager
def watch_sizes(model: nn.Module, tracer: LabelTracer) -> Iterator[None]:
    """Record sizes in ``tracer.sizes`` inside the context."""
    watch = SizeWatch(tracer)
    Size.on_equal = watch.compared
    try:
        with traced_attributes(model), nothing_remembered(model), watch:
            yield
        for size, layers, axis, where in tracer.sizes.made:
            watch.add(size, layers, axis, where=where)
    finally:
        Size.on_equal = None


class SizeWatch(TorchFunctionMode):
    """Torch function mode that records sizes with their origin."""

    def __init__(self, tracer: LabelTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if name == '__get__':
            out = func(*args, **kwargs)
            if func.__self__ is Tensor.shape:
                return self.extents(args[0], out)
            return out
        if name == 'size':
            shape = self.extents(args[0], args[0].shape)
            dim = args[1] if len(args) > 1 else kwargs.get('dim')
            return shape if dim is None else shape[dim]
        record = self.tracer.sizes
        if name == 'rms_norm':
            func = torch.ops.mmgfp._fused_rms_norm
        watched = _WATCHED.get(name)
        if watched is None:
            record.given, record.cuts = {}, set()
            return func(*args, **kwargs)
        before, after = watched
        record.given, record.cuts = {}, set()
        if before is not None:
            with self.tracer.aside():
                before(self, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            given, record.given, record.cuts = record.given, {}, set()
        if after is not None:
            with self.tracer.aside():
                after(self, args, kwargs, out, given)
        return out

    def extents(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        """Returns a shape of sizes whose origin is their axis."""
        layers = self.tracer.tag(tensor).layers
        if not layers:
            return shape
        return torch.Size(
            [
                Size(n, Extent(layers, axis, n)) if n > 1 else n
                for axis, n in enumerate(shape)
            ]
        )

    def compared(self, a: Size, b: Any) -> None:
        """Note two equal sizes, such as ``x.shape[1] == self.width``."""
        for size, other in ((a, b), (b, a)):
            term = term_of(other) if isinstance(other, Size) else None
            if isinstance(term, Extent) and attributes_in(size):
                self.add(size, term.layers, term.axis)

    def add(
        self,
        size: Any,
        layers: Sequence[Tensor],
        axis: int,
        positions: slice = slice(None),
        where: str | None = None,
    ) -> None:
        """Note that a size counts positions of an axis."""
        if has_origin(size):
            labels = self.labels(layers, axis)[positions]
            # a blank axis matters to an attribute that counts others, too
            blank = not attributes_in(size) and bool((labels < 0).all())
            if len(labels) == int(size) and not blank:
                self.note(size, labels, where or self.tracer.where())

    def note(self, size: Size, labels: np.ndarray, where: str) -> None:
        """Note the labels (n, k) that a size counts."""
        fact = SizeFact(size.term, labels, where)
        self.tracer.sizes.facts.append(fact)

    def labels(self, layers: Sequence[Tensor], axis: int) -> np.ndarray:
        """See :func:`axis_labels`."""
        return axis_labels(layers, axis, len(self.tracer.table))

    def layers(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Label layers; one that is blank if there are none."""
        found = self.tracer.layers(tensor)
        return found or (torch.tensor(-1).expand(tensor.shape),)


# -- what is done about each kind of operation ----------------------------


def _view_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    sizes = _listed_sizes(args, kwargs, 'shape', 'size')
    watch.tracer.sizes.given = dict(enumerate(sizes))


def _unflatten_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    dim = _argument(args, kwargs, 1, 'dim') % args[0].dim()
    sizes = _listed_sizes(args[1:], kwargs, 'sizes', 'unflattened_size')
    watch.tracer.sizes.given = {dim + i: n for i, n in enumerate(sizes)}


def _axes_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    """Note that each given size counts positions of a result's axis."""
    for axis, size in given.items():
        if isinstance(size, Size) and axis < out.dim():
            watch.add(size, watch.layers(out), axis)


def _expand_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    other = _argument(args, kwargs, 1, 'other', None)
    sizes = (
        watch.extents(other, other.shape)
        if isinstance(other, Tensor)
        else _listed_sizes(args, kwargs, 'size', 'sizes')
    )
    watch.tracer.sizes.given = dict(enumerate(sizes))


def _expand_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    """Note given sizes of axes that are not expanded."""
    new = out.dim() - args[0].dim()
    for axis, size in given.items():
        if axis < new or args[0].shape[axis - new] != size:
            continue
        labels = watch.labels(watch.layers(out), axis)
        term = term_of(size) if isinstance(size, Size) else None
        if isinstance(term, Extent):
            other = watch.labels(term.layers, term.axis)[:, :1]
            watch.tracer.couple(labels, other)
        else:
            watch.add(size, watch.layers(out), axis)


def _split_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    sizes = _split_sizes(args, kwargs)
    sizes = sizes if isinstance(sizes, (list, tuple)) else [sizes]
    if all(attributes_in(size) for size in sizes):
        watch.tracer.sizes.cuts = {int(size) for size in sizes}


def _split_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Sequence, given: dict
) -> None:
    sizes = _split_sizes(args, kwargs)
    dim = _argument(args, kwargs, 2, 'dim', 0) % args[0].dim()
    if not isinstance(sizes, (list, tuple)):
        sizes = [sizes] * len(out)
    for part, size in zip(out, sizes):
        if attributes_in(size):
            watch.add(size, watch.layers(part), dim)


def _cut_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    bounds = [
        bound
        for _, piece in _slices(args)
        for bound in (piece.start, piece.stop)
    ]
    watch.tracer.sizes.cuts = {
        int(bound) for bound in bounds if attributes_in(bound)
    }


def _cut_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Any, given: dict
) -> None:
    """Note that a bound counts positions before it, after it if negative."""
    for dim, piece in _slices(args):
        for bound in (piece.start, piece.stop):
            if not attributes_in(bound):
                continue
            layers = watch.layers(args[0])
            if bound < 0:
                watch.add(-bound, layers, dim, slice(int(bound), None))
            else:
                watch.add(bound, layers, dim, slice(0, int(bound)))


def _narrow_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    start = _argument(args, kwargs, 2, 'start')
    length = _argument(args, kwargs, 3, 'length')
    watch.tracer.sizes.cuts = {
        int(bound)
        for bound in (start, length, start + length)
        if attributes_in(bound)
    }


def _narrow_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    dim = _argument(args, kwargs, 1, 'dim') % args[0].dim()
    start = _argument(args, kwargs, 2, 'start')
    length = _argument(args, kwargs, 3, 'length')
    if attributes_in(start):
        layers = watch.layers(args[0])
        watch.add(start, layers, dim, slice(0, int(start)))
    if attributes_in(length):
        watch.add(length, watch.layers(out), dim)


def _fresh_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    """``x.new_zeros(n, self.width)``: labels are written in later."""
    where = watch.tracer.where()
    layers = watch.tracer.tag(out).layers
    for axis, size in enumerate(_fresh_sizes(args, kwargs)):
        if layers and axis < out.dim() and attributes_in(size):
            watch.tracer.sizes.made.append((size, layers, axis, where))


def _groups_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    """``F.conv2d(..., groups=n)``: n counts convolution groups."""
    _count_groups(watch, _argument(args, kwargs, 6, 'groups'), out)


def _norm_groups_after(
    watch: SizeWatch, args: tuple, kwargs: Mapping, out: Tensor, given: dict
) -> None:
    _count_groups(watch, _argument(args, kwargs, 1, 'num_groups'), out)


def _count_groups(watch: SizeWatch, groups: Any, out: Tensor) -> None:
    if attributes_in(groups):
        labels = watch.labels(watch.layers(out), 1)
        labels = labels.reshape(int(groups), -1)
        watch.note(groups, labels, watch.tracer.where())


def _attention_before(watch: SizeWatch, args: tuple, kwargs: Mapping) -> None:
    """Freeze the fixed embedding width of ``nn.MultiheadAttention``."""
    tracer = watch.tracer
    heads = _argument(args, kwargs, 4, 'num_heads')
    names = ('in_proj_weight', *(f'{n}_proj_weight' for n in 'qkv'))
    weights = [(kwargs.get(n), 0) for n in names]
    weights.append((_argument(args, kwargs, 5, 'in_proj_weight'), 0))
    weights.append((_argument(args, kwargs, 11, 'out_proj_weight'), 1))
    for weight, axis in weights:
        if weight is not None and tracer.tag(weight).weight is not None:
            labels = watch.labels(tracer.layers(weight), axis)
            tracer.freeze(
                labels[:, 0],
                f'{tracer.where()}, an nn.MultiheadAttention, divides '
                f'the width of its input by {int(heads)} heads: it has '
                'to stay',
            )


# -- sizes among the arguments of operations ------------------------------


def _argument(
    args: tuple, kwargs: Mapping, place: int, name: str, default: Any = None
) -> Any:
    """Returns an argument by its position or name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def _listed_sizes(args: tuple, kwargs: Mapping, *names: str) -> Sequence[Any]:
    """Returns sizes given one by one or as one list."""
    sizes: Any = args[1:] or [kwargs[name] for name in names if name in kwargs]
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        sizes = sizes[0]
    return sizes if all(isinstance(s, int) for s in sizes) else []


def _fresh_sizes(args: tuple, kwargs: Mapping) -> Sequence[Any]:
    """Returns the sizes of a new tensor, given one by one or as a list."""
    found = [a for a in args if not isinstance(a, Tensor)]
    if not found:
        found = [kwargs[n] for n in ('size', 'shape') if n in kwargs]
    if found and isinstance(found[0], (list, tuple)):
        return found[0]
    return found


def _split_sizes(args: tuple, kwargs: Mapping) -> Any:
    """Returns the lengths of the parts: a number or a list of numbers."""
    found = _argument(args, kwargs, 1, 'split_size_or_sections')
    if found is None:
        found = kwargs.get('split_size', kwargs.get('split_sizes'))
    return found


def _slices(args: tuple) -> Iterator[tuple[int, slice]]:
    """Yields each slice of ``x[...]`` with the axis of x that it cuts."""
    source, index = args[0], args[1]
    index = index if isinstance(index, tuple) else (index,)
    if not all(
        i is None or i is Ellipsis or isinstance(i, (int, slice))
        for i in index
    ):
        return
    used = sum(isinstance(i, (int, slice)) for i in index)
    dim = 0
    for i in index:
        if i is Ellipsis:
            dim += source.dim() - used
        elif i is not None:
            if isinstance(i, slice) and i.step in (None, 1):
                yield dim, i
            dim += 1


_WATCHED: dict[str, tuple[Before | None, After | None]] = {
    **dict.fromkeys(('view', 'reshape'), (_view_before, _axes_after)),
    **dict.fromkeys(('expand', 'expand_as'), (_expand_before, _expand_after)),
    'unflatten': (_unflatten_before, _axes_after),
    **dict.fromkeys(
        ('split', 'split_with_sizes'), (_split_before, _split_after)
    ),
    **dict.fromkeys(('__getitem__', '__setitem__'), (_cut_before, _cut_after)),
    **dict.fromkeys(
        (
            *('zeros', 'ones', 'empty', 'full'),
            *('new_zeros', 'new_ones', 'new_empty', 'new_full'),
        ),
        (None, _fresh_after),
    ),
    'narrow': (_narrow_before, _narrow_after),
    **dict.fromkeys(('conv1d', 'conv2d', 'conv3d'), (None, _groups_after)),
    'group_norm': (None, _norm_groups_after),
    'multi_head_attention_forward': (_attention_before, None),
}
