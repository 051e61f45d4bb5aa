"""Messages of errors raised by other code."""

from __future__ import annotations

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
