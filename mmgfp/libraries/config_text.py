"""A config as the text of a file that loads as the same config.

MMEngine's own text does not load where a config has classes, paths or numbers
that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.utils import get_object_from_string

from .kinds import imported

_LITERALS = (str, bytes, bool, int, complex, range, type(None))
_WIDTH = 79

# An import statement would make it a config of pure Python, which has no
# `{{ fileDirname }}`. MMEngine 0.10.7 does not recognise the standard library
# if it is outside of the environment. Names with two underscores are no
# settings.
_HEAD = """\
import_module = __import__('importlib').import_module
__imported = import_module('mmengine.config.lazy').LazyObject

"""


def config_text(config: Config) -> str:
    """Returns the text of a config, which may be written in pure Python.

    Classes as types become their dotted names, which registries find.
    Functions stay functions, because some are called directly. Imports and
    definitions of its file are no settings and are left out.

    Args:
        config (Config): A config of any library.

    Raises:
        ValueError: If a value has no text, with the name of the value.
    """
    lines = []
    for key in config.to_dict():  # without imported names
        value = config[key]
        if not isinstance(value, (FunctionType, ModuleType, type)):
            start = f'{key} = '
            lines.append(start + _text(value, key, 0, len(start)))
    text = '\n'.join([*lines, ''])
    if '__imported(' in text or 'import_module(' in text:
        text = _HEAD + text
    return text


def dotted_name(value: Any) -> str:
    """Returns the name by which a class or function can be imported.

    Returns:
        str: '' if there is none.
    """
    return '.'.join(_module_and_name(value))


def _module_and_name(value: Any) -> tuple[str, ...]:
    """Returns module and name of the dotted name; () if there is none."""
    name = getattr(value, '__qualname__', None)
    module = getattr(value, '__module__', None)
    if not isinstance(name, str) or not isinstance(module, str):
        # such as torch.float32, which is written as it is named
        module, _, name = str(value).rpartition('.')
    if module == '__main__':  # of this process only
        return ()
    while all(part.isidentifier() for part in f'{module}.{name}'.split('.')):
        if get_object_from_string(f'{module}.{name}') is value:
            return module, name
        # a package may have a function of its module's name
        module = module.rpartition('.')[0]
    return ()


def _text(value: Any, place: str, margin: int, used: int) -> str:
    """Returns a value as an expression.

    Args:
        value (Any): The value.
        place (str): Name of the value in the config, for the error.
        margin (int): Indentation of the line in columns.
        used (int): Used columns of the line.
    """
    value = imported(value)
    if isinstance(value, Mapping):
        return _mapping_text(value, place, margin, used)
    if type(value) in (list, tuple, set, frozenset):
        return _sequence_text(value, place, margin, used)
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) in _LITERALS:
        return repr(value)
    if isinstance(value, Path):
        return f'{_import_text(type(value))}({str(value)!r})'
    if not dotted_name(value):
        raise ValueError(
            f'the config has {place}={value!r}, of type '
            f'{type(value).__name__}, which cannot be written into the '
            'generated fine-tuning config; expected numbers, '
            'strings, lists, dicts, and classes and functions of modules that '
            'can be imported. Register its class or function, and use the '
            'name.'
        )
    if isinstance(value, type) and place.endswith('.type'):
        return repr(dotted_name(value))
    # MMEngine writes the config when it trains, but cannot write functions
    module, name = _module_and_name(value)
    if place.endswith(']') or '.' in name:
        return _import_text(value)
    return f'__imported({module!r}, {name!r})'


def _import_text(value: Any) -> str:
    module, name = _module_and_name(value)
    return f'import_module({module!r}).{name}'


def _mapping_text(
    value: Mapping[Any, Any], place: str, margin: int, used: int
) -> str:
    named = all(
        isinstance(key, str) and key.isidentifier() and not iskeyword(key)
        for key in value
    )
    opening, sign, closing = ('dict(', '=', ')') if named else ('{', ': ', '}')
    items = []
    for key, item in value.items():
        start = key if named else _text(key, f'a key of {place}', 0, 0)
        start += sign
        taken = margin + 4 + len(start)
        items.append(start + _text(item, f'{place}.{key}', margin + 4, taken))
    return _bracketed(opening, items, closing, margin, used)


def _sequence_text(
    value: Sequence[Any], place: str, margin: int, used: int
) -> str:
    items = [
        _text(item, f'{place}[{i}]', margin + 4, margin + 4)
        for i, item in enumerate(value)
    ]
    if isinstance(value, list):
        return _bracketed('[', items, ']', margin, used)
    if isinstance(value, tuple):
        end = ',)' if len(items) == 1 else ')'
        return _bracketed('(', items, end, margin, used)
    kind = type(value).__name__
    return _bracketed(f'{kind}([', sorted(items), '])', margin, used)


def _bracketed(
    opening: str, items: Sequence[str], closing: str, margin: int, used: int
) -> str:
    """Returns items between brackets, on one line if they fit."""
    line = f'{opening}{", ".join(items)}{closing}'
    # one column for what follows
    if '\n' not in line and used + len(line) < _WIDTH:
        return line
    space = ' ' * (margin + 4)
    lines = ''.join(f'{space}{item},\n' for item in items)
    return f'{opening}\n{lines}{" " * margin}{closing.lstrip(",")}'
