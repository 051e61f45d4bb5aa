"""Plain types from untrusted files, checked one by one."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import numpy as np

MAX_NATURAL = 2**53  # the largest whole number that JSON holds exactly


def read_json(path: str | os.PathLike, advice: str) -> Any:
    """Read a JSON file that may be damaged.

    Args:
        path (str | os.PathLike): The file.
        advice (str): What the user should do if it is damaged.

    Raises:
        ValueError: If it is not valid JSON, or is nested too deep.
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
    raise ValueError(f'{name} is not a number in JSON')


def shown(value: Any) -> str:
    """Returns a value from a file as one short line."""
    if type(value) in (str, int, float, bool, type(None)):
        return ascii(value)[:100]
    return f'a {type(value).__name__}'


def natural(value: Any) -> int:
    """Returns the value if it is a whole number from 0.

    Raises:
        ValueError: If it is another value.
    """
    if type(value) is int and 0 <= value < MAX_NATURAL:
        return value
    raise ValueError(f'{shown(value)} is not a natural number')


def number(value: Any) -> float:
    """Returns the value if it is a finite number.

    Raises:
        ValueError: If it is another value.
    """
    if isinstance(value, (np.floating, np.integer)):  # in older checkpoints
        value = value.item()
    if type(value) in (int, float) and abs(value) < 1e300:
        return float(value)
    raise ValueError(f'{shown(value)} is not a number')


def truth(value: Any) -> bool:
    """Returns the value if it is a bool.

    Raises:
        ValueError: If it is another value.
    """
    if type(value) is bool:
        return value
    raise ValueError(f'{shown(value)} is not true or false')


def text(value: Any) -> str:
    """Returns the text, with control characters escaped.

    Raises:
        ValueError: If the value is not text.
    """
    if type(value) is not str:
        raise ValueError(f'{shown(value)} is not text')
    return value if value.isprintable() else ascii(value)[1:-1]


def plain_list(value: Any) -> list[Any]:
    """Returns the value as a list if it is a list or a tuple.

    Raises:
        ValueError: If it is something else.
    """
    if type(value) in (list, tuple):
        return list(value)
    raise ValueError(f'{shown(value)} is not a list')


def plain_dict(value: Any) -> dict[Any, Any]:
    """Returns the value if it is a dict.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, dict):
        return value
    raise ValueError(f'{shown(value)} is not a mapping')
