"""Messages of errors raised by other code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NO_MMENGINE = (
    'needs MMEngine, which is not installed. Use `pip install '
    'onedl-mmengine`, or `pip install mmengine` beside the original '
    'distributions of OpenMMLab'
)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, its type if empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:300] if lines else type(error).__name__


def in_one_line(error: BaseException) -> str:
    """Returns an error's message as one line."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


def type_and_line(error: BaseException) -> str:
    """Returns ``'ValueError: the first line'``."""
    return f'{type(error).__name__}: {first_line(error)}'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown name.

    Args:
        name (str): The unknown name.
        known (Iterable[str]): The known ones.

    Returns:
        str: ``"; did you mean 'the nearest'?"``, or ``'.'`` if none is near.
    """
    near = get_close_matches(name, list(known), n=1)
    return f'; did you mean {near[0]!r}?' if near else '.'
