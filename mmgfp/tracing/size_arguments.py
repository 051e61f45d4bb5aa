"""Where the arguments of an operation hold sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def argument(
    args: tuple, kwargs: Mapping, place: int, name: str, default: Any = None
) -> Any:
    """An argument by its place or name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def listed_sizes(args: tuple, kwargs: Mapping, *names: str) -> Sequence[Any]:
    """Sizes given one by one, or as one list."""
    sizes: Any = args[1:] or [kwargs[name] for name in names if name in kwargs]
    if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
        sizes = sizes[0]
    return sizes if all(isinstance(s, int) for s in sizes) else []


def fresh_sizes(args: tuple, kwargs: Mapping) -> Sequence[Any]:
    """The sizes of a new tensor, given one by one or as a list."""
    found = [a for a in args if not isinstance(a, Tensor)]
    if not found:
        found = [kwargs[n] for n in ('size', 'shape') if n in kwargs]
    if found and isinstance(found[0], (list, tuple)):
        return found[0]
    return found


def split_sizes(args: tuple, kwargs: Mapping) -> Any:
    """How long the parts are: a number, or a list of numbers."""
    found = argument(args, kwargs, 1, 'split_size_or_sections')
    if found is None:
        found = kwargs.get('split_size', kwargs.get('split_sizes'))
    return found


def slices(args: tuple) -> Iterator[tuple[int, slice]]:
    """The slices of ``x[...]`` with the axis of x that each cuts."""
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
