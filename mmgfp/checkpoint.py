"""Reading checkpoints without executing what is in them."""

from __future__ import annotations

import os
import pickle
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def load_plain_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Load a checkpoint with ``weights_only=True`` onto the CPU.

    Args:
        path (str | os.PathLike): File that pruning or mmengine wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no checkpoint, or holds objects other
            than tensors, plain types and mmengine's log buffers.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    try:
        with _allow_log_buffers():
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=True
            )
    except pickle.UnpicklingError as error:
        if 'weights_only' not in str(error) and 'global' not in str(error):
            raise _truncated(path, error) from error
        raise ValueError(
            f'the checkpoint {path} holds objects other than tensors and '
            'plain types, which are not loaded because that could run code '
            f'({_first_line(error)})'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _truncated(path, error) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{path} holds a {type(checkpoint).__name__}, '
            'expected a checkpoint (a dict)'
        )
    return checkpoint


def _truncated(path: str, error: Exception) -> ValueError:
    return ValueError(
        f'the checkpoint {path} ({os.path.getsize(path)} bytes) cannot be '
        f'read: truncated or damaged ({_first_line(error)}). Copy it again or '
        'use an earlier one.'
    )


def _first_line(error: Exception) -> str:
    return (
        str(error).strip().splitlines()[0]
        if str(error).strip()
        else type(error).__name__
    )


def _allow_log_buffers() -> Any:
    """mmengine puts its log history into every checkpoint."""
    if not hasattr(torch.serialization, 'safe_globals'):
        return nullcontext()  # torch < 2.5
    reconstruct = np.ones(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(t))
        for t in ('f8', 'f4', 'i8', 'i4', 'u8', 'u4', 'u1', 'b1')
    }
    return torch.serialization.safe_globals(
        [HistoryBuffer, reconstruct, scalar, np.ndarray, np.dtype, *kinds]
    )
