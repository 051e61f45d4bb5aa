"""Writing files so that nothing half-written has the final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex


@contextmanager
def complete(path: str | os.PathLike) -> Iterator[str]:
    """Name to write to; becomes ``path`` if all goes well, else goes.

    Folders that are missing are made. Every call has a name of its own, so
    that several processes may write one path: the last one's file stays.
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
    """A path for people: relative where it is inside the current folder."""
    text = os.fspath(path)
    inside = os.path.abspath(text).startswith(os.path.join(os.getcwd(), ''))
    return os.path.relpath(text) if inside and '://' not in text else text
