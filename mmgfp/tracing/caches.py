"""Results that functions remember by the numbers they were given.

A function with a ``functools.lru_cache`` that has been called before returns
what it computed then, and what it computed from one attribute where another
one of the same value is given. While a network is traced it has to compute
from what it is given.

What code keeps in a dict of its own cannot be told from a table. It stays, and
when the trace is over there are plain numbers in it.
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
    """What functions remember of numbers and modules is forgotten.

    Before and afterwards, so that no size of a trace stays anywhere, and
    whenever something is looked up by a size.

    Args:
        model (nn.Module): The network that is traced.
    """
    caches = [
        found
        for found in gc.get_referrers(_Cached)  # each refers to its type
        if type(found) is _Cached and _is_own(found)
    ]
    known = dict.fromkeys(caches, 0)  # calls after which there was nothing

    def forget() -> None:
        for cached, before in known.items():
            calls = cached.cache_info().misses
            if calls != before:
                if any(map(_may_hold_sizes, _keys(cached))):
                    cached.cache_clear()
                known[cached] = cached.cache_info().misses

    forget()
    Size.on_hash = forget  # the key of a cache is hashed before it looks
    try:
        yield
    finally:
        Size.on_hash = None
        forget()
        _make_plain(model)


def _make_plain(model: nn.Module) -> None:
    """Leave plain numbers where a network's classes and their files do."""
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
    except ValueError:  # nothing has been put into it
        return None


def _is_own(found: Any) -> bool:
    """Whether a class or function may compute from sizes of networks."""
    return str(found.__module__).partition('.')[0] not in _OTHERS


def _keys(cached: Any) -> list[Any]:
    """What a cached function has been called with."""
    tables = (t for t in gc.get_referents(cached) if type(t) is dict)
    return [key for table in tables for key in list(table)]


def _may_hold_sizes(key: Any) -> bool:
    if isinstance(key, tuple):
        return any(map(_may_hold_sizes, key))
    return isinstance(key, (int, nn.Module)) and not isinstance(key, bool)
