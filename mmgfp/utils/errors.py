"""Words of errors that other code raised."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:300] if lines else type(error).__name__


def in_one_line(error: BaseException) -> str:
    """All that an error says, as one line."""
    return ' '.join(str(error).split())[:300] or type(error).__name__


def type_and_line(error: BaseException) -> str:
    """``'ValueError: the first line'``, for errors of any code."""
    return f'{type(error).__name__}: {first_line(error)}'
