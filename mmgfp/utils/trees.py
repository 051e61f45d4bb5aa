"""Tensors inside the inputs and outputs of networks.

Torch's operations take lists, tuples and dicts. A network's own inputs and
outputs may be any objects: dataclasses, data samples, mappings, iterators.

Torch's module for trees is private and changes; only this file uses it.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
    Set,
)
from contextlib import suppress
from io import IOBase
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = [
    'Part',
    'any_floats',
    'look_into',
    'map_tensors',
    'parts_of',
    'replaced',
    'tree_leaves',
    'tree_map_only',
    'values_in',
]

_NUMBERS = (bool, int, float, complex)

# Types that are not searched: networks are no outputs, and the others hold
# code, text, or data that only its owner may read.
_CLOSED = (
    *(nn.Module, type, ModuleType),
    *(FunctionType, BuiltinFunctionType, MethodType),
    *(str, bytes, bytearray, memoryview, range, IOBase),
)

# Precision in which the numbers of an array are compared.
_WIDEST = {'b': bool, 'i': np.int64, 'u': np.int64, 'f': float, 'c': complex}


def tree_leaves(tree: Any) -> list[Any]:
    """Returns the leaves of a tree, in order."""
    return tree_flatten(tree)[0]  # torch 2.0 has no tree_leaves


class Part(NamedTuple):
    """A value that an object holds.

    Attributes:
        value (Any): The value.
        kind (str): 'item', 'attribute', 'slot' or, where it cannot be
            replaced, 'read'.
        key (Hashable): Of the item, name of the attribute, or the slot's
            descriptor.
    """

    value: Any
    kind: str = 'read'
    key: Hashable = None


def parts_of(value: Any) -> list[Part]:
    """Returns the parts of a list, a mapping, an iterator or an object.

    Iterators are read to their end. Modules, functions, classes and strings
    have no parts.
    """
    if isinstance(value, _CLOSED):
        return []
    if isinstance(value, np.ndarray):
        objects = value.dtype.kind in 'OV'
        return [Part(v) for v in value.ravel().tolist()] if objects else []
    if isinstance(value, dict):
        items = [Part(v, 'item', k) for k, v in value.items()]
        return items + _attributes(value)
    if isinstance(value, (list, tuple, deque)):
        items = [Part(v, 'item', i) for i, v in enumerate(value)]
        return items + _attributes(value)
    held = _attributes(value)
    if isinstance(value, Mapping):
        return held + [Part(v) for v in value.values()]
    lazy = isinstance(value, (Iterator, MappingView, Sequence, Set))
    if isinstance(value, Iterable) and (lazy or not held):
        return held + [Part(v) for v in value]
    return held


def _attributes(value: Any) -> list[Part]:
    held = [
        Part(v, 'attribute', name)
        for name, v in getattr(value, '__dict__', {}).items()
    ]
    for cls in type(value).__mro__:
        # classes of compiled code have such members, too
        for member in vars(cls).values() if '__slots__' in vars(cls) else ():
            if isinstance(member, MemberDescriptorType):
                with suppress(AttributeError):  # nothing is stored there
                    held.append(Part(member.__get__(value), 'slot', member))
    return held


def replaced(value: Any, parts: Sequence[Part]) -> Any:
    """Returns a copy of an object with some parts replaced."""
    if isinstance(value, tuple):
        new = {part.key: part.value for part in parts if part.kind == 'item'}
        items = [new.get(i, item) for i, item in enumerate(value)]
        cls = type(value)
        return cls(*items) if hasattr(cls, '_fields') else cls(items)
    copied = copy.copy(value)
    for part in parts:
        if part.kind == 'item':
            copied[part.key] = part.value
        elif part.kind == 'attribute':  # without calling its setter
            vars(copied)[part.key] = part.value
        elif part.kind == 'slot':
            part.key.__set__(copied, part.value)  # type: ignore[attr-defined]
    return copied


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Returns a copy with changed tensors, also inside of objects.

    Objects that hold a changed tensor are copied, others are shared.
    """
    return _mapped(change, value, {})


def _mapped(
    change: Callable[[Tensor], Tensor], value: Any, seen: dict[int, Any]
) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Iterator) or id(value) in seen:
        return value
    seen[id(value)] = value
    parts = []
    for part in parts_of(value):
        if part.kind != 'read':
            new = _mapped(change, part.value, seen)
            if new is not part.value:
                parts.append(part._replace(value=new))
    return replaced(value, parts) if parts else value


def values_in(outputs: Any) -> list[Tensor]:
    """Returns the values in a network's outputs that can be compared.

    In order: tensors, arrays and, last, numbers; see :func:`look_into`.
    """
    tensors, numbers = look_into(outputs)
    return tensors + numbers


def look_into(outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Find the tensors and numbers in nested outputs.

    Args:
        outputs (Any): The network's outputs.

    Returns:
        tuple: Tensors, and numpy's arrays as tensors; Python's finite
        numbers as tensors.
    """
    tensors: list[Tensor] = []
    numbers: list[Tensor] = []
    seen: dict[int, Any] = {}  # keeps them, so that each has its own id
    left = [outputs]
    while left:
        value = left.pop()
        inside: Iterable[Any] = ()
        if isinstance(value, Tensor):
            tensors.append(value)
            if id(value) not in seen:
                inside = vars(value).values()
        elif _is_array(value):
            tensors.append(_of_array(value))
        elif type(value) in _NUMBERS or _is_list_of_numbers(value):
            numbers.extend(_of_numbers(value))
        elif id(value) not in seen:
            inside = [part.value for part in parts_of(value)]
        seen[id(value)] = value
        left.extend(reversed(list(inside)))
    return tensors, numbers


def any_floats(tensors: Iterable[Tensor]) -> bool:
    """Returns whether any tensor holds floating-point numbers."""
    return any(
        t.numel() and (t.is_floating_point() or t.is_complex())
        for t in tensors
    )


def _is_array(value: Any) -> bool:
    return (
        isinstance(value, (np.ndarray, np.generic))
        and value.dtype.kind in _WIDEST
    )


def _of_array(value: Any) -> Tensor:
    array = np.asarray(value)
    return torch.from_numpy(np.array(array, dtype=_WIDEST[array.dtype.kind]))


def _is_list_of_numbers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(type(v) in _NUMBERS for v in value)
    )


def _of_numbers(value: Any) -> list[Tensor]:
    """Returns one tensor of the finite numbers, in a list."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    finite = [complex(v) for v in numbers if math.isfinite(abs(v))]
    return [torch.tensor(finite, dtype=torch.complex128)] if finite else []
