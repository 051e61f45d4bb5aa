"""Reading checkpoints without executing what is in them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

_REFUSED = re.compile(
    r'unsupported (?:global|class):?\s+(?:GLOBAL )?(?P<name>\S+)'
    r'|(?:unrecognized function|can only (?:create|build))[^.]*',
    re.IGNORECASE,
)


def check_checkpoint(path: str | os.PathLike) -> None:
    """Complain about a missing or truncated checkpoint before it is loaded.

    Says nothing about addresses such as ``https://...``.

    Args:
        path (str | os.PathLike): As users name it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it was cut short.
    """
    path = os.fspath(path)
    if '://' in path:
        return
    if not os.path.isfile(path):
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    with open(path, 'rb') as file:
        start = file.read(2)
    if start == b'PK':
        # the table of contents is at the end of an archive
        if not zipfile.is_zipfile(path):
            raise _unreadable(path, 'its end is missing')
    elif start[:1] != b'\x80':  # how older checkpoints, pickles, begin
        raise _unreadable(path, 'it does not begin like a checkpoint')


def load_plain_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Load a checkpoint with ``weights_only=True`` onto the CPU.

    mmengine's log buffers, which are in every checkpoint of a training run,
    come out empty. (They need torch 2.6; older releases refuse the file.)

    Args:
        path (str | os.PathLike): File that pruning or mmengine wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no checkpoint, or holds objects other
            than tensors, arrays and plain types.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    try:
        with _allow_known():
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=True
            )
    except Exception as error:  # a damaged file raises anything
        refused = _REFUSED.search(str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise ValueError(
                f'the checkpoint {path} holds objects other than tensors and '
                f'plain types ({refused["name"] or refused[0]}), which are '
                'not loaded because that could run code'
            ) from error
        raise _unreadable(path, _last_line(error)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, '
            'expected a checkpoint (a dict)'
        )
    return checkpoint


def _unreadable(path: str, why: str) -> ValueError:
    return ValueError(
        f'the checkpoint {path} ({os.path.getsize(path)} bytes) cannot be '
        f'read: truncated or damaged ({why}). Copy it again or use an earlier '
        'one.'
    )


def _last_line(error: Exception) -> str:
    """What torch puts before it is advice on how to load the file anyway."""
    text = str(error).partition('\n\nCheck the documentation')[0].strip()
    return (text or type(error).__name__).splitlines()[-1].strip()[:200]


class _Ignored:
    """Takes the place of objects that nobody needs."""

    def __setstate__(self, state: Any) -> None:
        pass


def _ignore(*args: Any) -> None:
    """Takes the place of ``getattr`` in pickled log buffers."""


def _allow_known() -> Any:
    """Let arrays and mmengine's log buffers pass, under all their names."""
    if not _renames():
        return nullcontext()
    functions: dict[str, Any] = {
        '_reconstruct': np.ones(0).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    numpy = [
        (function, f'{package}.multiarray.{name}')
        for name, function in functions.items()
        for package in ('numpy.core', 'numpy._core')
    ]
    kinds = {
        type(np.dtype(t))
        for t in ('f8', 'f4', 'f2', 'i8', 'i4', 'u8', 'u4', 'u1', 'b1')
    }
    known: list[Any] = [
        (_Ignored, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_ignore, 'builtins.getattr'),
        *(np.ndarray, np.dtype, *numpy, *kinds),
    ]
    return torch.serialization.safe_globals(known)


def _renames() -> bool:
    """Whether this torch can load a name as something else (2.6)."""
    version = tuple(int(n) for n in re.findall(r'\d+', torch.__version__)[:2])
    return version >= (2, 6)
