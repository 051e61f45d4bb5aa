"""Reading checkpoints without executing what is in them."""

from __future__ import annotations

import os
import tarfile
import zipfile
from typing import Any

import torch

from . import unpickler


def check_checkpoint(path: str | os.PathLike) -> None:
    """Complain about a missing or truncated checkpoint before it is loaded.

    Says nothing about addresses such as ``https://...``.

    Args:
        path (str | os.PathLike): As users name it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, no checkpoint or was cut short.
    """
    path = os.fspath(path)
    if '://' not in path:
        _check_file(path)


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(
            f'the checkpoint {path} is a folder; expected a file, such as '
            f'{os.path.join(path, "epoch_12.pth")}'
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    with open(path, 'rb') as file:
        start = file.read(2)
    if start == b'PK':
        # the table of contents is at the end of an archive
        if not zipfile.is_zipfile(path):
            raise _unreadable(path, 'its end is missing')
    # how older checkpoints, pickles, begin; the oldest ones are refused later
    elif start[:1] != b'\x80' and not tarfile.is_tarfile(path):
        raise _unreadable(path, 'it does not begin like a checkpoint')


def load_plain_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing what is in it.

    mmengine's log buffers, which are in every checkpoint of a training run,
    come out empty.

    Args:
        path (str | os.PathLike): File that pruning or mmengine wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, truncated, no checkpoint, or holds
            objects other than tensors, arrays and plain types.
    """
    path = os.fspath(path)
    _check_file(path)
    try:
        _refuse_programs(path)
        checkpoint = torch.load(
            path,
            map_location='cpu',
            pickle_module=unpickler,
            weights_only=False,  # torch's own unpickler, which ours replaces
        )
    except unpickler.RefusedError as error:
        raise ValueError(
            f'the checkpoint {path} holds objects other than tensors and '
            f'plain types ({error}), which are not loaded because that could '
            'run code'
        ) from error
    except Exception as error:  # a damaged file raises anything
        raise _unreadable(path, _last_line(error)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, '
            'expected a checkpoint (a dict)'
        )
    return checkpoint


def _refuse_programs(path: str) -> None:
    """Complain about archives that torch reads without the unpickler."""
    with open(path, 'rb') as file:
        zipped = file.read(4) == b'PK\x03\x04'  # what torch goes by
    if zipped:
        records = torch._C.PyTorchFileReader(path).get_all_records()
        if 'constants.pkl' in records:
            raise unpickler.RefusedError('TorchScript')
    elif tarfile.is_tarfile(path):
        raise unpickler.RefusedError('a tar archive')


def _unreadable(path: str, why: str) -> ValueError:
    return ValueError(
        f'the checkpoint {path} ({os.path.getsize(path)} bytes) cannot be '
        f'read: truncated, damaged or no checkpoint ({why}). Copy it again or '
        'use an earlier one.'
    )


def _last_line(error: Exception) -> str:
    """What torch puts before it is advice on how to load the file anyway."""
    text = str(error).partition('\n\nCheck the documentation')[0].strip()
    return (text or type(error).__name__).splitlines()[-1].strip()[:200]
