"""Clearing of ``functools.lru_cache`` while a network is traced.

A cached function returns the result of an earlier call with equal arguments.
The tracer follows sizes from the attribute they come from, so a result that
was computed from another attribute of the same value would mislead it.

A dict that code uses as a cache cannot be distinguished from a table. Its
entries stay; sizes in it are replaced by plain numbers after the trace.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

from .sizes import Size, without_origin

_Cached: Any = type(lru_cache(int))
# Their functions compute nothing from the sizes of a network.
_OTHERS = frozenset(('torch', 'mmgfp', *sys.stdlib_module_names))


@contextmanager
def nothing_remembered(model: nn.Module) -> Iterator[None]:
    """Clear cached results of functions of numbers and modules.

    Caches are cleared before and after the trace, so that they keep no size
    of it, and whenever a size is used as a key.

    Args:
        model (nn.Module): The traced network.
    """
    caches = [
        found
        for found in gc.get_referrers(_Cached)  # each refers to its type
        if type(found) is _Cached and _is_own(found)
    ]
    known = dict.fromkeys(caches, 0)  # misses at the last clearing

    def forget() -> None:
        for cached, before in known.items():
            calls = cached.cache_info().misses
            if calls != before:
                if any(map(_may_hold_sizes, _keys(cached))):
                    cached.cache_clear()
                known[cached] = cached.cache_info().misses

    forget()
    Size.on_hash = forget  # a cache hashes its key before the lookup
    try:
        yield
    finally:
        Size.on_hash = None
        forget()
        _make_plain(model)


def _make_plain(model: nn.Module) -> None:
    """Replace sizes in a network's classes and their files by numbers."""
    classes = {c for m in model.modules() for c in type(m).__mro__}
    own = {found for found in classes if _is_own(found)}
    files = {sys.modules.get(found.__module__) for found in own} - {None}
    seen: set[int] = set()
    for owner in (*own, *files):
        for key, value in list(vars(owner).items()):
            if key.startswith('__'):
                continue
            plain = without_origin(value, seen)
            if plain is not value:
                setattr(owner, key, plain)
            function = getattr(value, '__func__', value)
            if isinstance(function, FunctionType):
                without_origin(function.__defaults__, seen)
                for cell in function.__closure__ or ():
                    without_origin(_content(cell), seen)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return None


def _is_own(found: Any) -> bool:
    """Returns whether a class or function may compute from sizes."""
    return str(found.__module__).partition('.')[0] not in _OTHERS


def _keys(cached: Any) -> list[Any]:
    """Returns the keys of a cache: arguments of earlier calls."""
    tables = (t for t in gc.get_referents(cached) if type(t) is dict)
    return [key for table in tables for key in list(table)]


def _may_hold_sizes(key: Any) -> bool:
    if isinstance(key, tuple):
        return any(map(_may_hold_sizes, key))
    return isinstance(key, (int, nn.Module)) and not isinstance(key, bool)
