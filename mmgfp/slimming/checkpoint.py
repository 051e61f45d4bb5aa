"""Reading checkpoints without executing what is in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..utils.archive import kind_of_file, read_archive
from ..utils.plain import shown
from ..utils.unpickler import RefusedError

EXTRA_STATE = '_extra_state'  # what a module adds may be anything


def check_checkpoint(path: str | os.PathLike, trusted: bool = False) -> None:
    """Complain about a checkpoint before mmengine loads, and runs, it.

    Says nothing about addresses such as ``https://...``.

    Args:
        path (str | os.PathLike): As users name it.
        trusted (bool): Whether it may hold objects of any kind. Defaults to
            False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, no checkpoint or was cut short, or holds
            objects other than tensors, arrays and plain types.
    """
    path = os.fspath(path)
    if '://' in path:
        return
    _check_file(path)
    if not trusted:
        try:
            load_plain_checkpoint(path)
        except ValueError as error:
            if not isinstance(error.__cause__, RefusedError):
                raise
            raise ValueError(
                f'{error}. Where you know who wrote it, --trust-checkpoint '
                'loads it.'
            ) from error


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(
            f'the checkpoint {path} is a folder; expected a file, such as '
            f'{os.path.join(path, "epoch_12.pth")}'
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    kind = kind_of_file(path)
    if kind is None:
        raise _unreadable(path, 'it does not begin like a checkpoint')
    if kind == 'zip':
        try:  # the table of contents is at the end of an archive
            zipfile.ZipFile(path).close()
        except Exception as error:  # a damaged file raises anything
            raise _unreadable(path, _in_words(error)) from error


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
        checkpoint = read_archive(path)
    except RefusedError as error:
        raise ValueError(
            f'the checkpoint {path} holds objects other than tensors and '
            f'plain types ({error}), which are not loaded because that could '
            'run code'
        ) from error
    except Exception as error:  # a damaged file raises anything
        raise _unreadable(path, _in_words(error)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, '
            'expected a checkpoint (a dict)'
        )
    return checkpoint


def weights_of(
    checkpoint: Mapping[str, Any], path: str | os.PathLike
) -> dict[str, Any]:
    """The weights in a checkpoint, which may consist of nothing else.

    Args:
        checkpoint (Mapping): As loaded.
        path (str | os.PathLike): Where it is from, for the message.

    Raises:
        ValueError: If there are no tensors by name.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) for name in weights
    ):
        raise ValueError(
            f'the checkpoint {os.fspath(path)} holds no weights: expected '
            f'tensors by name, got {shown(weights)}'
        )
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) and not name.endswith(EXTRA_STATE):
            raise ValueError(
                f'the checkpoint {os.fspath(path)} holds no weights: expected '
                f'tensors by name, got {shown(tensor)} for {shown(name)}'
            )
    return weights


def meta_of(
    checkpoint: Mapping[str, Any], path: str | os.PathLike
) -> dict[str, Any]:
    """What a checkpoint tells of its training; nothing if it does not.

    Args:
        checkpoint (Mapping): As loaded.
        path (str | os.PathLike): Where it is from, for the message.

    Raises:
        ValueError: If that is something else.
    """
    meta = checkpoint.get('meta')
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise ValueError(
            f'the checkpoint {os.fspath(path)} is damaged: expected a dict '
            f'under meta, got {shown(meta)}'
        )
    return meta


def _unreadable(path: str, why: str) -> ValueError:
    return ValueError(
        f'the checkpoint {path} ({os.path.getsize(path)} bytes) cannot be '
        f'read: truncated, damaged or no checkpoint ({why}). Copy it again or '
        'use an earlier one.'
    )


def _in_words(error: Exception) -> str:
    """Without characters that the file may have brought into it."""
    text = ascii(str(error) or type(error).__name__)
    return text[1:-1][:200]
