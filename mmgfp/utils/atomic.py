"""Atomic writing: a file has its final name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex


@contextmanager
def complete(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary name; renamed to ``path``, or deleted on an error.

    Missing folders are made. Every call has a name of its own, so that
    several processes may write the same path; the last file stays.
    """
    # torch.save writes the name without its ending into the file
    partial = f'{os.fspath(path)}.partial-{token_hex(8)}'
    os.makedirs(os.path.dirname(partial) or '.', exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(partial)
        raise


def from_here(path: str | os.PathLike) -> str:
    """Returns the path to show: relative if inside the current folder."""
    text = os.fspath(path)
    inside = os.path.abspath(text).startswith(os.path.join(os.getcwd(), ''))
    return os.path.relpath(text) if inside and '://' not in text else text
