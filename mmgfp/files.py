"""Writing files so that nothing half-written has the final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def complete(path: str | os.PathLike) -> Iterator[str]:
    """Name to write to; becomes ``path`` if all goes well, else goes.

    Folders that are missing are made.
    """
    partial = f'{os.fspath(path)}.partial'
    os.makedirs(os.path.dirname(partial) or '.', exist_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(partial)
        raise
