"""Plain types from files: read without trust, checked one by one."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import numpy as np

MAX_NATURAL = 2**53  # what JSON's numbers can hold exactly


def read_json(path: str | os.PathLike, advice: str) -> Any:
    """Read a JSON file that may be damaged.

    Args:
        path (str | os.PathLike): The file.
        advice (str): What to do where it is damaged.

    Raises:
        ValueError: If it is not valid JSON, or is nested without end.
    """
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            why = str(error) or type(error).__name__
            raise ValueError(
                f'{os.fspath(path)} is damaged: not valid JSON '
                f'({ascii(why)[1:-1]}); {advice}'
            ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is no number of JSON')


def shown(value: Any) -> str:
    """A value from a file, short and in one line."""
    if type(value) in (str, int, float, bool, type(None)):
        return ascii(value)[:100]
    return f'a {type(value).__name__}'


def natural(value: Any) -> int:
    """A whole number from 0.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is int and 0 <= value < MAX_NATURAL:
        return value
    raise ValueError(f'{shown(value)} is no natural number')


def number(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, (np.floating, np.integer)):  # in older checkpoints
        value = value.item()
    if type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    raise ValueError(f'{shown(value)} is no number')


def truth(value: Any) -> bool:
    """A truth value.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is bool:
        return value
    raise ValueError(f'{shown(value)} is no truth value')


def text(value: Any) -> str:
    """Text; what would spoil a terminal is made visible.

    Raises:
        ValueError: If it is none.
    """
    if type(value) is not str:
        raise ValueError(f'{shown(value)} is no text')
    return value if value.isprintable() else ascii(value)[1:-1]


def plain_list(value: Any) -> list[Any]:
    """A list or a tuple.

    Raises:
        ValueError: If it is something else.
    """
    if type(value) in (list, tuple):
        return list(value)
    raise ValueError(f'{shown(value)} is no list')


def plain_dict(value: Any) -> dict[Any, Any]:
    """A dict.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, dict):
        return value
    raise ValueError(f'{shown(value)} is no mapping')
