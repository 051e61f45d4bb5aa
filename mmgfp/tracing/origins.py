"""The parameters from which kernels of convolutions and products come.

A layer may standardise its stored weight, divide it by its norm, scale it or
add another one. While a network runs, this file records for every tensor's
storage the parameters and buffers it was computed from element by element,
and whether the network's input was used.
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

# Each element of their result depends on all elements of a factor.
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
    """Origin of a tensor.

    Attributes:
        data (bool): Whether it was computed from the network's input.
        weights (frozenset[str]): Parameters and buffers from which it was
            computed element by element, without products.
    """

    data: bool
    weights: frozenset[str] = frozenset()


_OUTSIDE = Origin(data=True)


class Origins:
    """Origins of the tensors of a running network.

    Tensors are identified by their storage, so that views are included. The
    address is not used: all tensors on the meta device have the same.

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
        """Returns a tensor's origin; an unknown tensor counts as input."""
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
        """Record the arguments of the network's calls as its input."""

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
        """Record the origin of an operation's results."""
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
        """Returns the parameter or buffer that a tensor is a view of."""
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
        """Returns the parameter or buffer whose values a kernel has.

        Of several candidates, the first with as many elements counts, else
        one of which the kernel is a part or that it repeats for every image.
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
        """Returns the parameter's axis of a kernel's axis; None if unknown.

        Args:
            name (str): Name of the parameter, see :meth:`weight_of`.
            kernel (Tensor): A view of the parameter or computed from it.
            axis (int): Axis of the kernel.
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
