"""Results that functions remember by the numbers they were given.

A function with a ``functools.lru_cache`` that has been called before returns
what it computed then, and what it computed from one attribute where another
one of the same value is given. While a network is traced it has to compute
from what it is given.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import nn

from .sizes import Size

_Cached: Any = type(lru_cache(int))
# Their functions compute nothing from the sizes of a network.
_OTHERS = frozenset(('torch', 'mmgfp', *sys.stdlib_module_names))


@contextmanager
def nothing_remembered() -> Iterator[None]:
    """What functions remember of numbers and modules is forgotten.

    Before and afterwards, so that no size of a trace stays anywhere, and
    whenever something is looked up by a size.
    """
    caches = [
        found
        for found in gc.get_referrers(_Cached)  # each refers to its type
        if type(found) is _Cached
        and str(found.__module__).partition('.')[0] not in _OTHERS
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


def _keys(cached: Any) -> list[Any]:
    """What a cached function has been called with."""
    tables = (t for t in gc.get_referents(cached) if type(t) is dict)
    return [key for table in tables for key in list(table)]


def _may_hold_sizes(key: Any) -> bool:
    if isinstance(key, tuple):
        return any(map(_may_hold_sizes, key))
    return isinstance(key, (int, nn.Module)) and not isinstance(key, bool)
