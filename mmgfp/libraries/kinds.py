"""Resolves the types in a config.

A type may be a registered name with or without a scope, a dotted name, a
class, or a class that a config of pure Python has not imported yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry


def imported(value: Any) -> Any:
    """Returns the object that a config of pure Python names, or the value."""
    if isinstance(value, (LazyAttr, LazyObject)):
        return value.build()
    return value


def kind_of(settings: Any, registry: Registry) -> Any:
    """Returns the class or function that builds a part of a config.

    Args:
        settings (Any): The part with its ``type``, or an object built from it.
        registry (Registry): Registry of such parts.

    Returns:
        Any: None if the type is not known.
    """
    if not isinstance(settings, Mapping):
        return type(settings)
    kind = imported(settings.get('type'))
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(settings.get('_scope_')) as known:
        try:
            return known.get(kind)
        except (KeyError, RuntimeError):  # depends on MMEngine's version
            return None


def kind_names(settings: Mapping[str, Any], registry: Registry) -> list[str]:
    """Returns the names of a part of a config, and of its base classes.

    Args:
        settings (Mapping): The part with its ``type``.
        registry (Registry): Registry of such parts.
    """
    kind = imported(settings.get('type'))
    names = [kind.rpartition('.')[2]] if isinstance(kind, str) else []
    kind = kind_of(settings, registry)
    bases = kind.__mro__ if isinstance(kind, type) else [kind]
    return names + [b.__name__ for b in bases if hasattr(b, '__name__')]
