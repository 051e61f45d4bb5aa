"""A reader of pickles that calls no function named in a file.

It implements the operations that Python writes for protocols 2 to 4, and a
closed list of constructors whose arguments are checked. The results are
tensors, arrays of numbers or text, and plain types. Their depth is limited,
and their memory by the size of the file.

``torch.load(weights_only=True)`` is no substitute (seen in torch 2.10). With
the log buffers of mmengine allowed, it passes numpy a state that may declare
bytes to be pointers. A key of a dict that is a tuple within tuples ends Python
with a segmentation fault.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['ReadLimits', 'RefusedError', 'Source', 'Storage', 'StorageType']


# A checkpoint of a training run has less than 100 000 operations; a million
# takes a second and at most some hundred megabytes.
MAX_OPERATIONS = 5_000_000
MAX_DEPTH = 64  # of containers within containers; usual is 8
MAX_NUMBER = 2**40  # of sizes, strides and the like
MAX_KEY = 2**60  # larger whole numbers can be chosen to have one hash


class RefusedError(pickle.UnpicklingError):
    """Raised if a file names an object that is not on the list.

    Args:
        what (str): What was refused.
    """


class Source:
    """A file of known length; reading beyond its end raises an error.

    Args:
        file (IO[bytes]): Open for reading.
        size (int): Bytes that are left in it.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.left = size

    def read(self, size: int) -> bytes:
        """Read exactly ``size`` bytes."""
        if not 0 <= size <= self.left:
            raise EOFError(f'{size} bytes are announced, {self.left} are left')
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError(f'{size} bytes are announced, {len(data)} are left')
        self.left -= size
        return data

    def readinto(self, memory: Any) -> int:
        """Fill a buffer; returns the number of bytes read."""
        read = self._file.readinto(memory)  # type: ignore[attr-defined]
        self.left -= read
        return read

    def line(self) -> str:
        """Text up to the end of a line, without it."""
        data = self._file.readline(min(self.left, 256))
        self.left -= len(data)
        if not data.endswith(b'\n'):
            raise EOFError('a name has no end')
        return data[:-1].decode('ascii')


class ReadLimits:
    """Limits of memory and operations for one file.

    Args:
        size (int): Bytes of the whole file.
    """

    def __init__(self, size: int) -> None:
        # shared memory and bytes read as text first count more than once,
        # but fewer times than this factor
        self._bytes = 8 * size + 2**24
        self.operations = 0

    def use_bytes(self, number: int) -> None:
        """Count bytes of tensors and arrays before they are made."""
        self._bytes -= number
        if self._bytes < 0:
            raise ValueError('tensors larger than the file')

    def use_operation(self) -> None:
        """Count an operation."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise ValueError(f'more than {MAX_OPERATIONS} operations')


@dataclass(frozen=True)
class StorageType:
    """Placeholder of a class of storages that a file names."""

    dtype: torch.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return torch.empty(0, dtype=self.dtype).element_size()


@dataclass(frozen=True)
class Storage:
    """Memory of tensors, as bytes, and the type of its elements."""

    memory: Tensor
    kind: StorageType

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.memory.numel() // self.kind.itemsize

    def check(self) -> None:
        """Raise if the memory holds values that no program writes."""
        if self.kind.dtype == torch.bool and (self.memory > 1).any():
            raise ValueError('truth values that are neither 0 nor 1')


class _Name:
    """Placeholder of a class that a file names."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Ignored:
    """Replaces objects that are not needed."""


class _DType:
    """Element type of an array; its state is read after it."""

    def __init__(self, kind: str) -> None:
        self.dtype = np.dtype(kind)


@dataclass(frozen=True)
class _Constructor:
    """A function of this module that a file may call."""

    name: str
    make: Callable[..., Any]


# -- checks of single values -------------------------------------------------


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_NUMBER


def _naturals(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list, torch.Size) or not (
        len(values) <= 32 and all(map(_is_natural, values))
    ):
        raise ValueError('sizes that are not natural numbers')
    return tuple(values)


def _key(value: Any) -> Any:
    """Returns a plain key; many keys with the same hash are not possible."""
    if type(value) in (str, bytes, float, bool, type(None)) or (
        type(value) is int and abs(value) < MAX_KEY
    ):
        return value
    raise RefusedError(f'a key that is a {_kind(value)}')


def _kind(value: Any) -> str:
    named = type(value) in (_Name, _Constructor)
    return value.name if named else type(value).__name__


# -- functions that a file may call -------------------------------------------


def _make_ordered_dict(limits: ReadLimits, pairs: Any = ()) -> OrderedDict:
    if type(pairs) not in (tuple, list) or not all(
        type(pair) in (tuple, list) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError('an OrderedDict that is not made of pairs')
    return OrderedDict((_key(key), value) for key, value in pairs)


def _make_counter(limits: ReadLimits, counts: Any) -> Counter:
    """Milestones of a learning rate."""
    if type(counts) is not dict or not all(
        type(count) is int for count in counts.values()
    ):
        raise ValueError('a Counter that is not made of numbers')
    return Counter(counts)


def _make_set(
    kind: type[set] | type[frozenset],
) -> Callable[..., Any]:
    def make(limits: ReadLimits, values: Any = ()) -> Any:
        if type(values) not in (tuple, list):
            raise RefusedError(f'a {kind.__name__} of a {_kind(values)}')
        return kind(map(_key, values))

    return make


def _make_bytes(
    limits: ReadLimits, text: Any = '', encoding: Any = ''
) -> bytes:
    """Bytes in the protocol that torch uses."""
    if type(text) is not str or type(encoding) is not str:
        raise RefusedError(f'bytes of a {_kind(text)}')
    if text and encoding != 'latin1':
        raise RefusedError(f'_codecs.encode to {encoding!r}')
    limits.use_bytes(len(text))
    return text.encode('latin1')


def _make_ignored(limits: ReadLimits, *_: Any) -> _Ignored:
    """Log buffers refer to their own methods."""
    return _Ignored()


def _make_size(limits: ReadLimits, sizes: Any) -> torch.Size:
    return torch.Size(_naturals(sizes))


def _make_device(
    limits: ReadLimits, kind: Any, index: Any = 0
) -> torch.device:
    if (
        type(kind) is not str
        or not re.fullmatch(r'[a-z]{1,20}(:\d{1,3})?', kind)
        or type(index) is not int
        or not 0 <= index < 128
    ):
        raise ValueError('a device that does not exist')
    return torch.device(
        kind if ':' in kind or not index else f'{kind}:{index}'
    )


def _make_dtype(
    limits: ReadLimits, kind: Any, align: Any = False, copy: Any = True
) -> _DType:
    # Numbers, truth values and text. Objects would be pointers.
    if type(kind) is not str or not re.fullmatch(
        r'b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,6}', kind
    ):
        raise RefusedError(f'elements of the type {_shown(kind)}')
    return _DType(kind)


def _make_empty_array(
    limits: ReadLimits, kind: Any, shape: Any, code: Any
) -> np.ndarray:
    """Returns an array whose state is read next."""
    if kind is not _ARRAY:
        raise RefusedError(f'an array that is a {_kind(kind)}')
    return np.empty(0)


def _make_scalar(limits: ReadLimits, dtype: Any, data: Any) -> np.generic:
    if type(dtype) is not _DType or type(data) is not bytes:
        raise ValueError('a number of numpy without a type or bytes')
    if len(data) != dtype.dtype.itemsize:
        raise ValueError('a number of numpy of another size')
    return np.frombuffer(data, dtype.dtype)[0]


def _set_array(limits: ReadLimits, array: np.ndarray, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5:
        raise ValueError('the state of an array')
    _, shape, dtype, fortran, data = state
    if (
        type(dtype) is not _DType
        or type(fortran) is not bool
        or type(data) is not bytes
        or array.shape != (0,)
    ):
        raise ValueError('the state of an array')
    shape = _naturals(shape)
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError(
            f'an array of the shape {shape} and {len(data)} bytes'
        )
    if dtype.dtype.kind == 'b' and data.strip(b'\0\1'):
        raise ValueError('truth values that are neither 0 nor 1')
    limits.use_bytes(len(data))
    # numpy's own method; all values were checked above
    whole: Any = (1, shape, dtype.dtype, fortran, data)
    array.__setstate__(whole)


def _set_dtype(dtype: _DType, state: Any) -> None:
    """Set the order of bytes; the rest follows from the type."""
    if (
        type(state) is not tuple
        or len(state) != 8
        or type(state[1]) is not str
        or state[1] not in ('<', '>', '=', '|')
        or any(part is not None for part in state[2:5])
    ):
        raise ValueError('the state of a dtype')
    order: Any = state[1]
    if order in '<>':
        dtype.dtype = dtype.dtype.newbyteorder(order)


def _make_tensor(
    limits: ReadLimits,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Make a tensor in a storage; bounds are checked with Python's integers,
    which do not overflow.
    """
    if type(storage) is not Storage or type(requires_grad) is not bool:
        raise ValueError('a tensor without storage')
    if metadata is not None and (type(metadata) is not dict or metadata):
        raise ValueError('a tensor with metadata')
    size, stride = _naturals(size), _naturals(stride)
    if len(size) != len(stride) or not _is_natural(offset):
        raise ValueError('a tensor whose strides do not fit its shape')
    numel = math.prod(size)
    end = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1
    if (end if numel else offset) > storage.numel:
        raise ValueError(
            f'a tensor of the shape {size} and strides {stride} in a storage '
            f'of {storage.numel} elements'
        )
    limits.use_bytes(numel * storage.kind.itemsize)
    tensor = torch.empty(0, dtype=storage.kind.dtype)
    tensor.set_(storage.memory.untyped_storage(), offset, size, stride)
    return tensor.requires_grad_(requires_grad)


def _make_parameter(
    limits: ReadLimits, data: Any, requires_grad: Any, hooks: Any
) -> torch.nn.Parameter:
    if type(data) is not Tensor or type(requires_grad) is not bool:
        raise RefusedError(f'a parameter of a {_kind(data)}')
    return torch.nn.Parameter(data, requires_grad)


def _known() -> dict[str, Any]:
    """Returns everything that a file may name."""
    known: dict[str, Any] = {'numpy.ndarray': _ARRAY}
    for kind, methods in _WITH_METHODS.items():
        known[kind] = _Name(kind)
        for method in methods:  # in protocol 4
            known[f'{kind}.{method}'] = _Ignored()
    constructors: dict[str, Callable[..., Any]] = {
        'builtins.getattr': _make_ignored,
        'builtins.set': _make_set(set),
        'builtins.frozenset': _make_set(frozenset),
        'builtins.bytes': _make_bytes,
        '_codecs.encode': _make_bytes,
        'collections.OrderedDict': _make_ordered_dict,
        'collections.Counter': _make_counter,
        'torch.Size': _make_size,
        'torch.device': _make_device,
        'torch._utils._rebuild_tensor': _make_tensor,
        'torch._utils._rebuild_tensor_v2': _make_tensor,
        'torch._utils._rebuild_parameter': _make_parameter,
        'numpy.dtype': _make_dtype,
    }
    for package in ('numpy.core', 'numpy._core'):  # until 1.26, from 2.0
        constructors[f'{package}.multiarray._reconstruct'] = _make_empty_array
        constructors[f'{package}.multiarray.scalar'] = _make_scalar
    for name, make in constructors.items():
        known[name] = _Constructor(name, make)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            known[f'torch.{name}'] = value
    for package in ('torch', 'torch.cuda'):
        for name, dtype in _STORAGES.items():
            known[f'{package}.{name}Storage'] = StorageType(dtype)
    return known


_ARRAY = _Name('numpy.ndarray')
# classes of mmengine whose methods are in checkpoints
_WITH_METHODS = {
    'mmengine.logging.history_buffer.HistoryBuffer': (
        *('min', 'max', 'current', 'mean'),
    ),
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': (
        *('_annealing_cos', '_annealing_linear'),
    ),
}
_STORAGES = {
    'Double': torch.float64,
    'Float': torch.float32,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexDouble': torch.complex128,
    'ComplexFloat': torch.complex64,
}
_KNOWN = _known()
_LEAVES = (
    *(str, bytes, int, float, bool, type(None)),
    *(Tensor, torch.nn.Parameter, torch.Size, torch.device, torch.dtype),
    *(np.ndarray, _Ignored),
)


# -- the operations ----------------------------------------------------------


def _shown(text: Any) -> str:
    """Returns text from a file for a message."""
    return ascii(text)[1:-1][:80] if type(text) is str else _kind(text)


@dataclass
class _Machine:
    """State of reading one pickle: a stack, marks on it, and a memo."""

    source: Source
    limits: ReadLimits
    storage: Callable[[Any], Storage] | None
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def number(self, form: str) -> Any:
        """Read a number that is stored as :mod:`struct` says."""
        (value,) = struct.unpack(form, self.source.read(struct.calcsize(form)))
        return value

    def marked(self) -> list[Any]:
        """Remove and return the stack's items above the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values


Operation = Callable[[_Machine], None]


# numbers and text


def _protocol(machine: _Machine) -> None:
    if machine.number('<B') > 5:
        raise ValueError('a protocol of pickle that is not known')


def _frame(machine: _Machine) -> None:
    machine.source.read(8)  # its length; what is in it follows


def _constant(value: Any) -> Operation:
    return lambda machine: machine.stack.append(value)


def _number(form: str) -> Operation:
    return lambda machine: machine.stack.append(machine.number(form))


def _long(machine: _Machine) -> None:
    data = machine.source.read(machine.number('<B'))
    machine.stack.append(int.from_bytes(data, 'little', signed=True))


def _text(form: str) -> Operation:
    def read(machine: _Machine) -> None:
        data = machine.source.read(machine.number(form))
        machine.stack.append(data.decode('utf-8'))

    return read


def _data(form: str) -> Operation:
    def read(machine: _Machine) -> None:
        machine.stack.append(machine.source.read(machine.number(form)))

    return read


# containers


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _new(kind: type) -> Operation:
    return lambda machine: machine.stack.append(kind())


def _tuple(machine: _Machine) -> None:
    values = machine.marked()
    machine.stack.append(tuple(values))


def _short_tuple(size: int) -> Operation:
    def make(machine: _Machine) -> None:
        stack = machine.stack
        if len(stack) < size:
            raise ValueError('a tuple of nothing')
        stack[-size:] = [tuple(stack[-size:])]

    return make


def _frozenset(machine: _Machine) -> None:
    values = machine.marked()
    machine.stack.append(frozenset(map(_key, values)))


def _append(machine: _Machine) -> None:
    _extend(machine, [machine.stack.pop()])


def _appends(machine: _Machine) -> None:
    _extend(machine, machine.marked())


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise RefusedError(f'elements of a {_kind(target)}')
    target.extend(values)


def _add_items(machine: _Machine) -> None:
    values = machine.marked()
    target = machine.stack[-1]
    if type(target) is not set:
        raise RefusedError(f'elements of a {_kind(target)}')
    target.update(map(_key, values))


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


def _set_items(machine: _Machine) -> None:
    _update(machine, machine.marked())


def _update(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) not in (dict, OrderedDict) or len(values) % 2:
        raise RefusedError(f'items of a {_kind(target)}')
    for key, value in zip(values[::2], values[1::2]):
        target[_key(key)] = value


# memo


def _put(form: str) -> Operation:
    def put(machine: _Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return put


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(form: str) -> Operation:
    return lambda machine: machine.stack.append(
        machine.memo[machine.number(form)]
    )


# objects by name


def _global(machine: _Machine) -> None:
    module = machine.source.line()
    machine.stack.append(_named(module, machine.source.line()))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise RefusedError(f'a name that is a {_kind(name)}')
    machine.stack.append(_named(module, name))


def _named(module: str, name: str) -> Any:
    module = 'builtins' if module == '__builtin__' else module
    found = _KNOWN.get(f'{module}.{name}')
    if found is None:
        raise RefusedError(_shown(f'{module}.{name}'))
    return found


def _call(machine: _Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(function) is not _Constructor or type(arguments) is not tuple:
        raise RefusedError(f'call of a {_kind(function)}')
    machine.stack.append(function.make(machine.limits, *arguments))


def _object(machine: _Machine) -> None:
    _, kind = machine.stack.pop(), machine.stack.pop()
    if type(kind) is not _Name or kind is _ARRAY:
        raise RefusedError(f'instance of a {_kind(kind)}')
    machine.stack.append(_Ignored())


def _set_state(machine: _Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is _Ignored:
        return
    if type(target) is _DType:
        _set_dtype(target, state)
    elif type(target) is np.ndarray:
        _set_array(machine.limits, target, state)
    elif type(target) is OrderedDict:
        target._metadata = _metadata(state)  # type: ignore[attr-defined]
    else:
        raise RefusedError(f'state of a {_kind(target)}')


def _stored(machine: _Machine) -> None:
    if machine.storage is None:
        raise RefusedError('a storage where none is expected')
    machine.stack.append(machine.storage(machine.stack.pop()))


def _metadata(state: Any) -> OrderedDict:
    """Returns the versions of modules, an attribute of a state dict."""
    metadata: Any = state.get('_metadata') if type(state) is dict else None
    if type(metadata) not in (dict, OrderedDict) or len(state) != 1:
        raise ValueError('the state of an OrderedDict')
    for name, entries in metadata.items():
        if (
            type(name) is not str
            or type(entries) is not dict
            or not isinstance(entries.get('version', 1), (int, type(None)))
        ):
            raise ValueError('the state of an OrderedDict')
    return metadata


_OPERATIONS: dict[bytes, Operation] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.MARK: _mark,
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.BININT: _number('<i'),
    pickle.BININT1: _number('<B'),
    pickle.BININT2: _number('<H'),
    pickle.BINFLOAT: _number('>d'),
    pickle.LONG1: _long,
    pickle.BINUNICODE: _text('<I'),
    pickle.SHORT_BINUNICODE: _text('<B'),
    pickle.BINSTRING: _text('<i'),  # Python 2
    pickle.SHORT_BINSTRING: _text('<B'),  # Python 2
    pickle.BINBYTES: _data('<I'),
    pickle.SHORT_BINBYTES: _data('<B'),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.TUPLE: _tuple,
    pickle.TUPLE1: _short_tuple(1),
    pickle.TUPLE2: _short_tuple(2),
    pickle.TUPLE3: _short_tuple(3),
    pickle.EMPTY_LIST: _new(list),
    pickle.EMPTY_DICT: _new(dict),
    pickle.EMPTY_SET: _new(set),
    pickle.FROZENSET: _frozenset,
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.ADDITEMS: _add_items,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.BINPUT: _put('<B'),
    pickle.LONG_BINPUT: _put('<I'),
    pickle.MEMOIZE: _memoize,
    pickle.BINGET: _get('<B'),
    pickle.LONG_BINGET: _get('<I'),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _call,
    pickle.NEWOBJ: _object,
    pickle.BUILD: _set_state,
    pickle.BINPERSID: _stored,
}


def _run(machine: _Machine) -> Any:
    """Carry out operations until the last one; returns its value."""
    while True:
        code = machine.source.read(1)
        machine.limits.use_operation()
        if code == pickle.STOP:
            return machine.stack.pop()
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise RefusedError('an operation that torch never writes')
        operation(machine)


# -- the result --------------------------------------------------------------


def _contents(value: Any) -> Iterable[Any]:
    if type(value) in (dict, OrderedDict, Counter):
        yield from value.values()
        yield from vars(value).values() if type(value) is OrderedDict else ()
    elif type(value) in (list, tuple):
        yield from value
    elif type(value) not in (*_LEAVES, set, frozenset) and not (
        isinstance(value, np.generic)
    ):
        raise RefusedError(f'a {_kind(value)} in place of a value')


def _measure(
    value: Any, depth: int, known: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Returns depth and number of the values read, with repetitions.

    A value that contains itself is too deep.
    """
    if type(value) in _LEAVES:
        return 0, 1
    found = known.get(id(value))
    if depth + (found[0] if found else 0) > MAX_DEPTH:
        raise ValueError(f'values nested more than {MAX_DEPTH} deep')
    if found is None:
        levels, number = 0, 1
        for part in _contents(value):
            more, parts = _measure(part, depth + 1, known)
            levels, number = max(levels, more + 1), number + parts
        found = known[id(value)] = levels, number
    return found


def load(
    source: Source,
    limits: ReadLimits,
    storage: Callable[[Any], Storage] | None = None,
) -> Any:
    """Read one pickle.

    Args:
        source (Source): Positioned after the pickle on return.
        limits (ReadLimits): Limits of the whole file.
        storage (Callable, optional): Returns the storage of a persistent id.

    Raises:
        RefusedError: If it names an object that is not on the list.
        Exception: Of any type, if it is damaged.
    """
    before = limits.operations
    content = _run(_Machine(source, limits, storage))
    number = _measure(content, 0, {})[1]
    if number > 16 * (limits.operations - before) + 1000:
        raise ValueError('values that repeat each other too often')
    return content
