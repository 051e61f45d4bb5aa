"""Which parameters the kernels of convolutions and products come from.

A layer need not use its weight as it is stored: it may be standardised,
divided by its norm, summed with another one or scaled. While a network runs,
every tensor's storage is known to come from parameters and buffers, element
by element, and whether the network's input had a part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..utils.trees import tree_leaves

# Their result is made of all elements of a factor: no longer its values.
PRODUCTS = {
    'aten::mm': (0, 1),
    'aten::bmm': (0, 1),
    'aten::mv': (0, 1),
    'aten::addmm': (1, 2),
    'aten::baddbmm': (1, 2),
    'aten::addmv': (1, 2),
}
MIXING = {*PRODUCTS, 'aten::convolution', 'torchvision::deform_conv2d'}


@dataclass(frozen=True)
class Origin:
    """What a tensor was computed from.

    Attributes:
        data (bool): Whether the network's input had a part in it.
        weights (frozenset[str]): Parameters and buffers whose values are in
            it; those that went through a product are not.
    """

    data: bool
    weights: frozenset[str] = frozenset()


_OUTSIDE = Origin(data=True)


class Origins:
    """Where the tensors of a running network come from.

    Tensors are recognised by their storage, so that views count; not by its
    address, which all tensors on the meta device share.

    Args:
        model (nn.Module): The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.stored = {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }
        self._place = {name: i for i, name in enumerate(self.stored)}
        self._names: dict[StorageWeakRef, list[str]] = {}
        self._known: dict[StorageWeakRef, Origin] = {}
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor):
                    self._set(value, Origin(data=False))
        for name, tensor in self.stored.items():
            self._set(tensor, Origin(False, frozenset([name])))
            if tensor.dim():
                key = StorageWeakRef(tensor.untyped_storage())
                self._names.setdefault(key, []).append(name)

    def of(self, tensor: Tensor) -> Origin:
        """What a tensor comes from; of others, from outside, the input."""
        if tensor.layout != torch.strided:
            return _OUTSIDE
        key = StorageWeakRef(tensor.untyped_storage())
        return self._known.get(key, _OUTSIDE)

    def _set(self, tensor: Tensor, origin: Origin) -> None:
        if tensor.layout == torch.strided:
            key = StorageWeakRef(tensor.untyped_storage())
            if key not in self._names:
                self._known[key] = origin

    @contextmanager
    def inputs(self) -> Iterator[None]:
        """What the network itself is called with is its input."""

        def mark(module: nn.Module, args: tuple, kwargs: dict) -> None:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self._set(value, _OUTSIDE)

        handle = self._model.register_forward_pre_hook(mark, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def note(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """What an operation's results come from."""
        given = [
            self.of(t)
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor)
        ]
        random = torch.Tag.nondeterministic_seeded in func.tags
        weights: frozenset[str] = frozenset()
        if func._schema.name not in MIXING:
            weights = weights.union(*(origin.weights for origin in given))
        data = random or any(origin.data for origin in given)
        for result in tree_leaves(out):
            if isinstance(result, Tensor):
                self._set(result, Origin(data, weights))

    def stored_in(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a tensor is a view of."""
        if tensor.layout != torch.strided:
            return None
        key = StorageWeakRef(tensor.untyped_storage())
        at = tensor.storage_offset()
        for name in self._names.get(key, ()):
            whole = self.stored[name]
            if 0 <= at - whole.storage_offset() < whole.numel():
                return name
        return None

    def weight_of(self, kernel: Tensor) -> str | None:
        """The parameter or buffer whose values a kernel has.

        Of several matrices or kernels that it was computed from, the first
        one with as many elements. Otherwise one of which it is a part, or
        that it repeats for every image.
        """
        direct = self.stored_in(kernel)
        if direct is not None:
            return direct
        origin = self.of(kernel)
        steps = zip(kernel.shape, kernel.stride())
        size = prod(n for n, step in steps if step)  # without repetitions
        sizes = {
            name: self.stored[name].numel()
            for name in sorted(origin.weights, key=self._place.__getitem__)
            if self.stored[name].dim() > 1 and self.stored[name].numel()
        }
        equal = [name for name, n in sizes.items() if n == size]
        if equal:
            return equal[0]
        repeated = [n for n in sizes if origin.data and size % sizes[n] == 0]
        if repeated:
            return max(repeated, key=lambda name: sizes[name])
        larger = [name for name, n in sizes.items() if n > size]
        return larger[0] if len(larger) == 1 else None

    def output_axis(self, name: str, kernel: Tensor, axis: int) -> int | None:
        """The axis of a parameter that is a kernel's; None if not known.

        Args:
            name (str): See :meth:`weight_of`.
            kernel (Tensor): Computed from it, or a view of it.
            axis (int): Of the kernel.
        """
        whole = self.stored[name]
        if kernel.dim() == whole.dim() > 2 and kernel.shape == whole.shape:
            return axis % whole.dim()
        step, size = kernel.stride(axis), kernel.shape[axis]
        fits = [d for d, n in enumerate(whole.shape) if n == size]
        alike = [d for d, n in enumerate(whole.stride()) if n == step]
        if size == 1:
            alike = []
        both = [d for d in fits if d in alike]
        return next(iter([*both, *fits, *alike]), None)
