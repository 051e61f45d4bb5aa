"""Errors of commands in one line."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import type_and_line

PACKAGE = Path(__file__).resolve().parents[1]  # all of mmgfp

_MISTAKES = (ValueError, RuntimeError, FileNotFoundError)


@contextmanager
def errors_in_one_line(debug: bool = False) -> Iterator[None]:
    """Turn errors into one line: status 2 for a user's mistake, 1 for others.

    A mistake of the user is a :exc:`ValueError`, :exc:`RuntimeError` or
    :exc:`FileNotFoundError` that mmgfp itself raised, possibly raised again by
    a registry. The traceback of other errors, which may be bugs, is written
    to a file that the line names. Ctrl-C ends with status 130, as in a shell.

    Args:
        debug (bool): Whether to raise errors unchanged. Defaults to False.
    """
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write('interrupted\n')
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        mistake = _raised_by_mmgfp(error)
        if mistake is not None:
            sys.stderr.write(f'error: {mistake}\n')
            raise SystemExit(2) from None
        sys.stderr.write(
            f'error: {type_and_line(error)} ({_keep_traceback()} has the '
            'traceback; --debug shows it)\n'
        )
        raise SystemExit(1) from None


def _keep_traceback() -> str:
    """Write the traceback of the current error to a file; returns its path."""
    number, path = tempfile.mkstemp(prefix='mmgfp_error_', suffix='.txt')
    with open(number, 'w', encoding='utf-8') as file:
        file.write(traceback.format_exc())
    return path


def _raised_by_mmgfp(error: BaseException) -> BaseException | None:
    """Returns the error of a chain that mmgfp raised; None if none was."""
    link: BaseException | None = error
    while link is not None:
        frames = traceback.extract_tb(link.__traceback__)
        known = isinstance(link, _MISTAKES)
        if known and frames and PACKAGE in Path(frames[-1].filename).parents:
            return link
        link = link.__cause__ or link.__context__
    return None
