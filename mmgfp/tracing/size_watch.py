"""Which sizes the code hands to operations, and where they come from.

Operations get sizes as plain numbers from the dispatcher; here they are seen
before that, as the network's code gives them.
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
from .size_arguments import (
    argument,
    fresh_sizes,
    listed_sizes,
    slices,
    split_sizes,
)
from .size_facts import Labels, SizeFact, axis_labels
from .sizes import (
    Extent,
    Size,
    attributes_in,
    has_origin,
    term_of,
    traced_attributes,
)

# Torch takes an RMSNorm apart on some devices, and then no rule sees that the
# heads of an attention are normalised one by one.
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


@contextmanager
def watch_sizes(model: nn.Module, tracer: Labels) -> Iterator[None]:
    """Record sizes in ``tracer.sizes`` while inside."""
    watch = _SizeWatch(tracer)
    Size.on_equal = watch.compared
    try:
        with traced_attributes(model), nothing_remembered(model), watch:
            yield
        for size, layers, axis, where in tracer.sizes.made:
            watch.add(size, layers, axis, where=where)
    finally:
        Size.on_equal = None


class _SizeWatch(TorchFunctionMode):
    def __init__(self, tracer: Labels) -> None:
        super().__init__()
        self._tracer = tracer

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
                return self._extents(args[0], out)
            return out
        if name == 'size':
            shape = self._extents(args[0], args[0].shape)
            dim = args[1] if len(args) > 1 else kwargs.get('dim')
            return shape if dim is None else shape[dim]
        record = self._tracer.sizes
        if name == 'rms_norm':
            func = torch.ops.mmgfp._fused_rms_norm
        watched = _WATCHED.get(name)
        if watched is None:
            record.given, record.cuts = {}, set()
            return func(*args, **kwargs)
        before, after = watched
        record.given, record.cuts = {}, set()
        with self._tracer.aside():
            before(self, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            given, record.given, record.cuts = record.given, {}, set()
        with self._tracer.aside():
            after(self, args, kwargs, out, given)
        return out

    def _extents(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        layers = self._tracer.tag(tensor).layers
        if not layers:
            return shape
        return torch.Size(
            [
                Size(n, Extent(layers, axis, n)) if n > 1 else n
                for axis, n in enumerate(shape)
            ]
        )

    def compared(self, a: Size, b: Any) -> None:
        """``assert x.shape[1] == self.width``: so it has to be later on."""
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
                self._note(size, labels, where or self._tracer.where())

    def _note(self, size: Size, labels: np.ndarray, where: str) -> None:
        fact = SizeFact(size.term, labels, where)
        self._tracer.sizes.facts.append(fact)

    def labels(self, layers: Sequence[Tensor], axis: int) -> np.ndarray:
        """See :func:`axis_labels`."""
        return axis_labels(layers, axis, len(self._tracer.table))

    def layers(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Label layers; one that is blank if there are none."""
        found = self._tracer.layers(tensor)
        return found or (torch.tensor(-1).expand(tensor.shape),)

    # -- what is done about each kind of operation ------------------------

    def view_before(self, args: tuple, kwargs: Mapping) -> None:
        sizes = listed_sizes(args, kwargs, 'shape', 'size')
        self._tracer.sizes.given = dict(enumerate(sizes))

    def unflatten_before(self, args: tuple, kwargs: Mapping) -> None:
        dim = argument(args, kwargs, 1, 'dim') % args[0].dim()
        sizes = listed_sizes(args[1:], kwargs, 'sizes', 'unflattened_size')
        self._tracer.sizes.given = {dim + i: n for i, n in enumerate(sizes)}

    def axes_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        """Each given size counts the positions of an axis of the result."""
        for axis, size in given.items():
            if isinstance(size, Size) and axis < out.dim():
                self.add(size, self.layers(out), axis)

    def expand_before(self, args: tuple, kwargs: Mapping) -> None:
        other = argument(args, kwargs, 1, 'other', None)
        sizes = (
            self._extents(other, other.shape)
            if isinstance(other, Tensor)
            else listed_sizes(args, kwargs, 'size', 'sizes')
        )
        self._tracer.sizes.given = dict(enumerate(sizes))

    def expand_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        """An axis that is as wide already stays as wide as it has to be."""
        new = out.dim() - args[0].dim()
        for axis, size in given.items():
            if axis < new or args[0].shape[axis - new] != size:
                continue
            labels = self.labels(self.layers(out), axis)
            term = term_of(size) if isinstance(size, Size) else None
            if isinstance(term, Extent):
                other = self.labels(term.layers, term.axis)[:, :1]
                self._tracer.couple(labels, other)
            else:
                self.add(size, self.layers(out), axis)

    def split_before(self, args: tuple, kwargs: Mapping) -> None:
        sizes = split_sizes(args, kwargs)
        sizes = sizes if isinstance(sizes, (list, tuple)) else [sizes]
        if all(attributes_in(size) for size in sizes):
            self._tracer.sizes.cuts = {int(size) for size in sizes}

    def split_after(
        self, args: tuple, kwargs: Mapping, out: Sequence, given: dict
    ) -> None:
        sizes = split_sizes(args, kwargs)
        dim = argument(args, kwargs, 2, 'dim', 0) % args[0].dim()
        if not isinstance(sizes, (list, tuple)):
            sizes = [sizes] * len(out)
        for part, size in zip(out, sizes):
            if attributes_in(size):
                self.add(size, self.layers(part), dim)

    def cut_before(self, args: tuple, kwargs: Mapping) -> None:
        bounds = [
            bound
            for _, piece in slices(args)
            for bound in (piece.start, piece.stop)
        ]
        self._tracer.sizes.cuts = {
            int(bound) for bound in bounds if attributes_in(bound)
        }

    def cut_after(
        self, args: tuple, kwargs: Mapping, out: Any, given: dict
    ) -> None:
        """Bounds count the positions before, or behind if negative."""
        for dim, piece in slices(args):
            for bound in (piece.start, piece.stop):
                if not attributes_in(bound):
                    continue
                layers = self.layers(args[0])
                if bound < 0:
                    self.add(-bound, layers, dim, slice(int(bound), None))
                else:
                    self.add(bound, layers, dim, slice(0, int(bound)))

    def narrow_before(self, args: tuple, kwargs: Mapping) -> None:
        start = argument(args, kwargs, 2, 'start')
        length = argument(args, kwargs, 3, 'length')
        self._tracer.sizes.cuts = {
            int(bound)
            for bound in (start, length, start + length)
            if attributes_in(bound)
        }

    def narrow_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        dim = argument(args, kwargs, 1, 'dim') % args[0].dim()
        start = argument(args, kwargs, 2, 'start')
        length = argument(args, kwargs, 3, 'length')
        if attributes_in(start):
            layers = self.layers(args[0])
            self.add(start, layers, dim, slice(0, int(start)))
        if attributes_in(length):
            self.add(length, self.layers(out), dim)

    def fresh_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        """``x.new_zeros(n, self.width)``: what it counts shows later."""
        where = self._tracer.where()
        layers = self._tracer.tag(out).layers
        for axis, size in enumerate(fresh_sizes(args, kwargs)):
            if layers and axis < out.dim() and attributes_in(size):
                self._tracer.sizes.made.append((size, layers, axis, where))

    def nothing_before(self, args: tuple, kwargs: Mapping) -> None:
        pass

    def groups_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        """``F.conv2d(..., groups=n)``: n counts convolution groups."""
        self._count_groups(argument(args, kwargs, 6, 'groups'), out)

    def norm_groups_after(
        self, args: tuple, kwargs: Mapping, out: Tensor, given: dict
    ) -> None:
        self._count_groups(argument(args, kwargs, 1, 'num_groups'), out)

    def _count_groups(self, groups: Any, out: Tensor) -> None:
        if attributes_in(groups):
            labels = self.labels(self.layers(out), 1)
            labels = labels.reshape(int(groups), -1)
            self._note(groups, labels, self._tracer.where())

    def attention_before(self, args: tuple, kwargs: Mapping) -> None:
        """``nn.MultiheadAttention`` divides its fixed embedding width."""
        tracer = self._tracer
        heads = argument(args, kwargs, 4, 'num_heads')
        names = ('in_proj_weight', *(f'{n}_proj_weight' for n in 'qkv'))
        weights = [(kwargs.get(n), 0) for n in names]
        weights.append((argument(args, kwargs, 5, 'in_proj_weight'), 0))
        weights.append((argument(args, kwargs, 11, 'out_proj_weight'), 1))
        for weight, axis in weights:
            if weight is not None and tracer.tag(weight).weight is not None:
                labels = self.labels(tracer.layers(weight), axis)
                tracer.freeze(
                    labels[:, 0],
                    f'{tracer.where()}, an nn.MultiheadAttention, divides '
                    f'the width of its input by {int(heads)} heads: it has '
                    'to stay',
                )

    def nothing_after(
        self, args: tuple, kwargs: Mapping, out: Any, given: dict
    ) -> None:
        pass


_W = _SizeWatch
_WATCHED: dict[str, tuple[Callable, Callable]] = {
    **dict.fromkeys(('view', 'reshape'), (_W.view_before, _W.axes_after)),
    **dict.fromkeys(
        ('expand', 'expand_as'), (_W.expand_before, _W.expand_after)
    ),
    'unflatten': (_W.unflatten_before, _W.axes_after),
    **dict.fromkeys(
        ('split', 'split_with_sizes'), (_W.split_before, _W.split_after)
    ),
    **dict.fromkeys(
        ('__getitem__', '__setitem__'), (_W.cut_before, _W.cut_after)
    ),
    **dict.fromkeys(
        (
            *('zeros', 'ones', 'empty', 'full'),
            *('new_zeros', 'new_ones', 'new_empty', 'new_full'),
        ),
        (_W.nothing_before, _W.fresh_after),
    ),
    'narrow': (_W.narrow_before, _W.narrow_after),
    **dict.fromkeys(
        ('conv1d', 'conv2d', 'conv3d'), (_W.nothing_before, _W.groups_after)
    ),
    'group_norm': (_W.nothing_before, _W.norm_groups_after),
    'multi_head_attention_forward': (_W.attention_before, _W.nothing_after),
}
