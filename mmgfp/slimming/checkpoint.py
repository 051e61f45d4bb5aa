"""Reading checkpoints without running code from them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..utils.archive import kind_of_file, read_archive
from ..utils.plain import shown
from ..utils.unpickler import RefusedError

EXTRA_STATE = '_extra_state'  # a module may add objects of any type


def check_checkpoint(path: str | os.PathLike, trusted: bool = False) -> None:
    """Raise if a checkpoint could run code, before mmengine loads it.

    Addresses such as ``https://...`` are not checked.

    Args:
        path (str | os.PathLike): File or address.
        trusted (bool): Whether it may hold objects of any type. Defaults to
            False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, truncated, no checkpoint, or holds
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
                f'{error}. If you trust its author, --trust-checkpoint '
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
    """Load a checkpoint onto the CPU without running code from it.

    The log buffers of mmengine, part of every training checkpoint, are
    replaced by empty objects.

    Args:
        path (str | os.PathLike): File written by pruning or mmengine.

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
            f'plain types ({error}). They are not loaded, because that could '
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
    """Returns the weights in a checkpoint, with or without other parts.

    Args:
        checkpoint (Mapping): The loaded checkpoint.
        path (str | os.PathLike): Its file, for the message.

    Raises:
        ValueError: If it holds no tensors by name.
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
    """Returns the entry ``meta`` of a checkpoint; empty if it has none.

    Args:
        checkpoint (Mapping): The loaded checkpoint.
        path (str | os.PathLike): Its file, for the message.

    Raises:
        ValueError: If the entry is not a dict.
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
        f'read: it is truncated, damaged or no checkpoint ({why}). Copy it '
        'again or use an earlier one.'
    )


def _in_words(error: Exception) -> str:
    """Returns the error in one line, without raw characters of the file."""
    text = ascii(str(error) or type(error).__name__)
    return text[1:-1][:200]
