"""Calls of extension operators, which the dispatcher does not see.

Extension operators are autograd functions around compiled code, most of them
mmcv's. They are found among torch's subclasses; no library is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

# called with class, forward and arguments of a call; returns its result
Around = Callable[[type, Callable, Sequence[Any]], Any]


@contextmanager
def around_compiled(around: Around) -> Iterator[None]:
    """Replace the forward of each autograd function that is not torch's.

    Args:
        around (Callable): Called in place of the function's forward. May call
            that forward.
    """
    forwards = [
        (cls, cls.__dict__['forward'])
        for cls in _functions(torch.autograd.Function)
        if 'forward' in cls.__dict__
    ]
    for cls, forward in forwards:
        cls.forward = staticmethod(_wrapped(around, cls, forward))
    try:
        yield
    finally:
        for cls, forward in forwards:
            cls.forward = forward


def _functions(base: Any) -> Iterator[Any]:
    for cls in base.__subclasses__():
        if cls.__module__.partition('.')[0] not in ('torch', 'mmgfp'):
            yield cls
        yield from _functions(cls)


def _wrapped(around: Around, cls: type, forward: Any) -> Callable:
    call = forward.__func__ if isinstance(forward, staticmethod) else forward

    @wraps(call)
    def wrapped(*args: Any) -> Any:
        return around(cls, call, args)

    return wrapped


def by_name(call: Callable, args: Sequence[Any]) -> dict[str, Any]:
    """Returns the arguments of a call by name, with defaults filled in."""
    parameters = list(inspect.signature(call).parameters.values())
    values = {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty
    }
    values.update({p.name: a for p, a in zip(parameters, args)})
    return values
