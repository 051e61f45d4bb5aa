"""An unpickler that executes nothing: tensors, arrays and plain types only.

Meant as the ``pickle_module`` of :func:`torch.load`, which uses nothing of a
module but :class:`Unpickler` and :func:`load`. What torch has of this kind,
``weights_only=True``, refuses the log buffers that mmengine puts into every
checkpoint of a training run, and before torch 2.6 could not be told otherwise.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any, ClassVar

import numpy as np
import torch

__all__ = ['Unpickler', 'load']


class RefusedError(pickle.UnpicklingError):
    """The file names a class or a function that is not known to be harmless.

    Args:
        name (str): What was refused.
    """


class _Ignored:
    """Takes the place of objects that nobody needs."""

    def __setstate__(self, state: Any) -> None:
        pass


def _ignore(*args: Any) -> None:
    """Takes the place of ``getattr`` in pickled log buffers."""


def _encode(text: str, encoding: str) -> bytes:
    """How bytes are written in the protocol that torch uses."""
    if encoding != 'latin1':
        raise RefusedError(f'_codecs.encode to {encoding}')
    return text.encode(encoding)


def _known() -> dict[str, Any]:
    """Everything that a file may name."""
    known: dict[str, Any] = {
        'mmengine.logging.history_buffer.HistoryBuffer': _Ignored,
        'builtins.getattr': _ignore,
        '_codecs.encode': _encode,
        'collections.OrderedDict': OrderedDict,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    for kind in (set, frozenset, bytearray, complex):
        known[f'builtins.{kind.__name__}'] = kind
    for name in _REBUILD:
        known[f'torch._utils.{name}'] = getattr(torch._utils, name)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            known[f'torch.{name}'] = value
    numpy = {
        '_reconstruct': np.ones(0).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    for name, function in numpy.items():
        for package in ('numpy.core', 'numpy._core'):  # until 1.26, from 2.0
            known[f'{package}.multiarray.{name}'] = function
    return known


_REBUILD = (
    '_rebuild_tensor',
    '_rebuild_tensor_v2',
    '_rebuild_parameter',
    '_rebuild_sparse_tensor',
)
_KNOWN = _known()
# what may be handed a state: no class and no function, which could be changed
_STATEFUL = (_Ignored, OrderedDict, np.ndarray, np.dtype)


# The implementation in C offers no place for what is checked here.
_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):
    """Knows what is in :data:`_KNOWN`, and refuses everything else."""

    dispatch: ClassVar = dict(_PythonUnpickler.dispatch)  # by opcode

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up; nothing is imported."""
        module = module.replace('__builtin__', 'builtins')
        found = _KNOWN.get(f'{module}.{name}')
        if found is None:
            raise RefusedError(f'{module}.{name}')
        return found

    def _call(self) -> None:
        function = self.stack[-2]
        if not any(function is known for known in _KNOWN.values()):
            raise RefusedError(f'call of a {type(function).__name__}')
        self.load_reduce()

    def _make(self) -> None:
        if self.stack[-2] is not _Ignored:
            raise RefusedError(f'instance of {self.stack[-2]}')
        self.load_newobj()

    def _set_state(self) -> None:
        if not isinstance(self.stack[-2], _STATEFUL):
            raise RefusedError(f'state of a {type(self.stack[-2]).__name__}')
        self.load_build()

    def _refuse(self) -> None:
        raise RefusedError('an operation that torch never writes')

    dispatch[pickle.REDUCE[0]] = _call
    dispatch[pickle.NEWOBJ[0]] = _make
    dispatch[pickle.BUILD[0]] = _set_state
    dispatch.update(
        dict.fromkeys(
            (
                *(pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ_EX[0]),
                *(pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]),
            ),
            _refuse,
        )
    )


def load(file: IO[bytes], **options: Any) -> Any:
    """Unpickle one object, as :func:`pickle.load` does."""
    return Unpickler(file, **options).load()
