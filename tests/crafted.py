"""Checkpoints that were made to do harm, written operation by operation."""

from __future__ import annotations

import gzip
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO

import numpy as np
import torch

PROTO = b'\x80\x02'
EMPTY, CALL, BUILD, STOP = b')', b'R', b'b', b'.'
MARK, TUPLE, STORED = b'(', b't', b'Q'


# -- operations --------------------------------------------------------------


def name(module: str, attribute: str) -> bytes:
    return f'c{module}\n{attribute}\n'.encode()


def text(word: str) -> bytes:
    data = word.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def values(*parts: bytes) -> bytes:
    """A tuple."""
    return MARK + b''.join(parts) + TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + values(*arguments) + CALL


def entry(value: bytes, key: bytes | None = None) -> bytes:
    """A checkpoint with one entry."""
    return PROTO + b'}' + (key or text('state_dict')) + value + b's' + STOP


TRUE, FALSE, NONE = b'\x88', b'\x89', b'N'
ENCODE = name('_codecs', 'encode')
ORDERED = name('collections', 'OrderedDict') + EMPTY + CALL
DTYPE = name('numpy', 'dtype')
NDARRAY = name('numpy', 'ndarray')
RECONSTRUCT = name('numpy.core.multiarray', '_reconstruct')
SCALAR = name('numpy.core.multiarray', 'scalar')
REBUILD = name('torch._utils', '_rebuild_tensor_v2')
POINTERS = call(ENCODE, text('A' * 64), text('latin1'))


def numbers(*sizes: int) -> bytes:
    return values(*map(number, sizes))


def dtype(kind: str, *state: bytes) -> bytes:
    made = call(DTYPE, text(kind), FALSE, TRUE)
    return made + values(*state) + BUILD if state else made


def dtype_state(order: str = '<', flags: int = 0) -> tuple[bytes, ...]:
    end = (number(-1), number(-1), number(flags))
    return (number(3), text(order), NONE, NONE, NONE, *end)


def array(kind: bytes, shape: bytes, data: bytes = POINTERS) -> bytes:
    empty = call(RECONSTRUCT, NDARRAY, numbers(0), POINTERS)
    return empty + values(number(1), shape, kind, FALSE, data) + BUILD


def storage(
    numel: int = 6,
    kind: str = 'FloatStorage',
    key: bytes = b'',
    first: bytes = b'',
    location: bytes = b'',
) -> bytes:
    return (
        values(
            first or text('storage'),
            name('torch', kind),
            key or text('0'),
            location or text('cpu'),
            number(numel),
        )
        + STORED
    )


def tensor(
    size: bytes, stride: bytes, offset: int = 0, of: bytes | None = None
) -> bytes:
    parts = (of or storage(), number(offset), size, stride, FALSE, ORDERED)
    return call(REBUILD, *parts)


# -- files -------------------------------------------------------------------


def saved(**options) -> bytes:
    """A harmless file, whose storage '0' has six floats."""
    file = BytesIO()
    torch.save({'state_dict': {'a': torch.ones(2, 3)}}, file, **options)
    return file.getvalue()


def zipped(
    program: bytes,
    records: dict[str, bytes] | None = None,
    compress: int = zipfile.ZIP_STORED,
    twice: str = '',
) -> bytes:
    """That file with another pickle, and perhaps other records."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(saved())) as archive:
        content = {i.filename: archive.read(i) for i in archive.infolist()}
    content['archive/data.pkl'] = program
    content.update(records or {})
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(file, 'w', compress) as archive,
    ):
        warnings.simplefilter('ignore')
        for path, data in content.items():
            archive.writestr(path, data)
        if twice:
            archive.writestr(twice, content[twice])
    return file.getvalue()


def legacy(program: bytes, keys: bytes = b'', data: bytes = b'') -> bytes:
    """The format before torch 1.6, with another pickle."""
    start = b''.join(
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
    )
    return start + program + (keys or pickle.dumps(['0'], 2)) + data


def tar_of(data: bytes) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        info = tarfile.TarInfo('storages')
        info.size = len(data)
        archive.addfile(info, BytesIO(data))
    return file.getvalue()


def overlapping() -> bytes:
    """Many entries of the table of contents that are one and the same."""
    data = zipped(entry(NONE), {'archive/data/9': b'\0' * 50_000})
    end = data.rindex(b'PK\x05\x06')
    size, start = struct.unpack('<II', data[end + 12 : end + 20])
    table = data[start : start + size]
    last = table[table.rindex(b'PK\x01\x02') :]
    assert b'archive/data/9' in last
    more = [last.replace(b'data/9', b'data/%c' % c) for c in range(65, 91)]
    counts = struct.unpack('<H', data[end + 10 : end + 12])[0] + len(more)
    table += b''.join(more)
    return (
        data[: start + size]
        + b''.join(more)
        + data[end : end + 8]
        + struct.pack('<HHII', counts, counts, len(table), start)
        + data[end + 20 :]
    )


DEEP = 100_000
LAUGHS = b''.join(b'](' + b'h\x00' * 10 + b'eq\x00' for _ in range(40))

# what the pickle of an archive says
PROGRAMS: dict[str, bytes] = {
    # objects of numpy: their elements are pointers
    'array of objects over a bytearray': entry(
        call(
            NDARRAY,
            numbers(8),
            dtype('O'),
            call(
                name('builtins', 'bytearray'), text('A' * 64), text('latin1')
            ),
        )
    ),
    'hashes of the elements of such an array': entry(
        call(
            name('builtins', 'set'),
            call(
                NDARRAY,
                numbers(8),
                dtype('O'),
                call(
                    name('builtins', 'bytearray'),
                    text('A' * 64),
                    text('latin1'),
                ),
            ),
        )
    ),
    'array of objects': entry(array(dtype('O'), numbers(8))),
    'array of objects without the flag that says so': entry(
        array(dtype('O8', *dtype_state('|')), numbers(8))
    ),
    'objects within a structured dtype': entry(
        array(
            dtype(
                'V8',
                *(number(3), text('|'), NONE, values(text('f'))),
                b'}' + text('f') + values(dtype('O8'), number(0)) + b's',
                *(number(8), number(1), number(0)),
            ),
            numbers(8),
        )
    ),
    'fields in the state of a number': entry(
        array(
            dtype(
                'f8',
                *(number(3), text('<'), values(dtype('O8'), numbers(1))),
                *(NONE, NONE, number(8), number(8), number(0)),
            ),
            numbers(8),
        )
    ),
    'scalar that is an object': entry(call(SCALAR, dtype('O8'), POINTERS)),
    'scalar shorter than its type': entry(
        call(SCALAR, dtype('f8'), call(ENCODE, text('A'), text('latin1')))
    ),
    'dtype of a class': entry(call(DTYPE, NDARRAY, FALSE, TRUE)),
    'dtype of a long text': entry(call(DTYPE, text('f8,' * 9999))),
    'dtype of empty text': entry(array(dtype('U0'), numbers(8))),
    'dtype of times': entry(array(dtype('M8'), numbers(8))),
    'dtype for a value': entry(dtype('f8')),
    'array of another class': entry(
        call(RECONSTRUCT, name('builtins', 'set'), numbers(0), POINTERS)
    ),
    'array of a huge shape': entry(array(dtype('f8'), numbers(2**39, 2**39))),
    'array of a shape that overflows': entry(
        array(dtype('i1'), numbers(2**32, 2**32))
    ),
    'array of a negative shape': entry(array(dtype('f8'), numbers(-1, -8))),
    'array of a shape of text': entry(array(dtype('f8'), text('8'))),
    'array of 100 axes': entry(array(dtype('f8'), numbers(8, *[1] * 99))),
    'array with two states': entry(
        array(dtype('f8'), numbers(8))
        + values(number(1), numbers(8), dtype('f8'), FALSE, POINTERS)
        + BUILD
    ),
    'array of truth values that are none': entry(
        array(dtype('b1'), numbers(64))
    ),
    'text beyond Unicode': entry(
        call(SCALAR, dtype('U1'), call(ENCODE, text('ÿ' * 4), text('latin1')))
    ),
    # calls
    'reduce of eval': entry(call(name('builtins', 'eval'), text('1/0'))),
    'reduce of a module': entry(call(name('os', 'system'), text('true'))),
    'nested reduce': entry(
        call(
            name('builtins', 'getattr'),
            call(name('builtins', 'getattr'), ORDERED, text('__class__')),
            text('__subclasses__'),
        )
        + EMPTY
        + CALL
    ),
    'call of what a call gave': entry(call(ORDERED, text('a'))),
    'call of a number': entry(number(1) + EMPTY + CALL),
    'call with a list': entry(name('torch', 'Size') + b']' + CALL),
    'new object of OrderedDict': entry(
        name('collections', 'OrderedDict') + EMPTY + b'\x81'
    ),
    'new object with keywords': entry(
        name('collections', 'OrderedDict') + EMPTY + b'}' + b'\x92'
    ),
    'new array': entry(NDARRAY + numbers(8) + b'\x81'),
    'old instance': entry(MARK + b'icollections\nOrderedDict\n'),
    'old object': entry(MARK + name('collections', 'OrderedDict') + b'o'),
    'extension registry': entry(b'\x82\x01'),
    'bytearray of a number': entry(
        call(name('builtins', 'bytearray'), number(2**45))
    ),
    'bytearray8 of a huge size': entry(b'\x96' + struct.pack('<Q', 2**45)),
    'bytes of a huge number': entry(
        call(name('builtins', 'bytes'), number(2**45))
    ),
    'buffer from outside': entry(b'\x97'),
    'encode to a program': entry(call(ENCODE, text('a'), text('rot13'))),
    'encode of a number': entry(call(ENCODE, number(2**40), text('latin1'))),
    'set of arrays': entry(
        call(
            name('builtins', 'set'),
            b'](' + array(dtype('f8'), numbers(8)) + b'e',
        )
    ),
    'counter of tensors': entry(
        call(
            name('collections', 'Counter'),
            b'}' + text('a') + tensor(numbers(6), numbers(1)) + b's',
        )
    ),
    'counter of a text': entry(
        call(name('collections', 'Counter'), text('a' * 9))
    ),
    'set of a dict': entry(call(name('builtins', 'set'), b'}')),
    'set of an iterator': entry(
        call(name('builtins', 'set'), tensor(numbers(6), numbers(1)))
    ),
    # states
    'state of an OrderedDict': entry(
        ORDERED + b'}' + text('keys') + NONE + b's' + BUILD
    ),
    'metadata that is none': entry(
        ORDERED + b'}' + text('_metadata') + number(3) + b's' + BUILD
    ),
    'state of a class': entry(
        name('collections', 'OrderedDict')
        + b'}'
        + text('update')
        + NONE
        + b's'
        + BUILD
    ),
    'state of a function': entry(REBUILD + b'}' + BUILD),
    'state of a tensor': entry(
        tensor(numbers(6), numbers(1)) + values(number(1), number(2)) + BUILD
    ),
    'state of a dict': entry(b'}' + b'}' + text('a') + NONE + b's' + BUILD),
    'setstate by name': entry(
        call(name('numpy', 'ndarray.__setstate__'), numbers(8))
    ),
    'items of a tensor': entry(
        tensor(numbers(6), numbers(1)) + number(0) + number(1) + b's'
    ),
    'appended to a tensor': entry(
        tensor(numbers(6), numbers(1)) + number(0) + b'a'
    ),
    # keys
    'key within tuples within tuples': entry(NONE, EMPTY + b'\x85' * 3 * DEEP),
    'key that is a tensor': entry(NONE, tensor(numbers(6), numbers(1))),
    'key that is an array': entry(NONE, array(dtype('f8'), numbers(8))),
    'keys of one hash': entry(
        b'}('
        + b''.join(number(k * (2**61 - 1)) + NONE for k in range(20_000))
        + b'u'
    ),
    'element of a set within tuples': entry(
        b'\x8f(' + EMPTY + b'\x85' * DEEP + b'\x90'
    ),
    # nesting
    'tuples within tuples': entry(EMPTY + b'\x85' * DEEP),
    'lists within lists': entry(b']' * DEEP + b'a' * (DEEP - 1)),
    'dicts within dicts': entry(
        (b'}' + text('a')) * DEEP + NONE + b's' * DEEP
    ),
    'marks without end': entry(MARK * DEEP + TUPLE),
    'list that contains itself': entry(b']q\x00h\x00a'),
    'dict that contains itself': entry(b'}q\x00' + text('a') + b'h\x00s'),
    'metadata that contains itself': entry(
        ORDERED
        + b'q\x00}'
        + text('_metadata')
        + b'}'
        + text('a')
        + b'h\x00ss'
        + BUILD
    ),
    'lists of the list before': entry(b'](]q\x00' + LAUGHS + b'e'),
    'a long text, encoded again and again': entry(
        b']('
        + text('a' * 100_000)
        + b'q\x01'
        + (ENCODE + values(b'h\x01', text('latin1')) + CALL) * 2000
        + b'e'
    ),
    # lengths that are not there
    'text of a huge length': entry(b'X\xff\xff\xff\xff'),
    'text of a negative length': entry(b'T\xff\xff\xff\xff'),
    'bytes of a huge length': entry(b'\x8e' + struct.pack('<Q', 2**62)),
    'frame of a huge length': b'\x80\x04\x95'
    + struct.pack('<Q', 2**62)
    + STOP,
    'whole number of a huge length': entry(b'\x8b\xff\xff\xff\x7f'),
    'memo that was not written': entry(b'j\xff\xff\xff\xff'),
    'lone surrogate': entry(text('\ud800')),
    'name of several lines': entry(text('a\nb') + text('c\nd') + b'\x93'),
    'name without end': entry(b'c' + b'a' * 100_000),
    'nothing': b'',
    'only the end': STOP,
    'unknown protocol': b'\x80\xff.',
    # tensors
    'tensor beyond its storage': entry(tensor(numbers(7), numbers(1))),
    'tensor behind its storage': entry(tensor(numbers(1), numbers(1), 6)),
    'tensor of a huge shape': entry(
        tensor(numbers(2**39, 2**39), numbers(2**39, 1))
    ),
    'tensor of a shape that overflows': entry(
        tensor(numbers(2**32, 2**32), numbers(0, 0))
    ),
    'tensor of huge strides': entry(tensor(numbers(2, 3), numbers(2**62, 1))),
    'tensor of strides that overflow': entry(
        tensor(numbers(5, 5), numbers(2**62, 2**62))
    ),
    'tensor of negative strides': entry(
        tensor(numbers(2, 3), numbers(-3, -1), 5)
    ),
    'tensor of a negative offset': entry(tensor(numbers(2), numbers(1), -4)),
    'tensor of a negative shape': entry(
        tensor(numbers(-2, -3), numbers(3, 1))
    ),
    'tensor with less strides': entry(tensor(numbers(2, 3), numbers(1))),
    'tensor of truth values for a shape': entry(
        tensor(values(TRUE, TRUE), numbers(1, 1))
    ),
    'tensor that repeats one value': entry(
        tensor(numbers(10**6, 10**6), numbers(0, 0))
    ),
    'tensors that repeat one value': entry(
        b'](' + tensor(numbers(10**6), numbers(0)) * 100 + b'e'
    ),
    'tensor of a tensor': entry(
        tensor(*(numbers(6), numbers(1)), of=tensor(numbers(6), numbers(1)))
    ),
    'tensor without storage': entry(tensor(numbers(6), numbers(1), of=NONE)),
    'tensor of 100 axes': entry(
        tensor(numbers(*[1] * 100), numbers(*[1] * 100))
    ),
    'sparse tensor with indices out of range': entry(
        call(
            name('torch._utils', '_rebuild_sparse_tensor'),
            name('torch', 'sparse_coo'),
            values(
                tensor(numbers(1, 6), numbers(6, 1)),
                tensor(numbers(6), numbers(1)),
                numbers(2),
                TRUE,
            ),
        )
    ),
    'quantised tensor': entry(
        call(
            name('torch._utils', '_rebuild_qtensor'),
            *(storage(), number(0), numbers(6), numbers(1)),
        )
    ),
    'parameter of a number': entry(
        call(
            name('torch._utils', '_rebuild_parameter'),
            *(number(1), TRUE, ORDERED),
        )
    ),
    # storages
    'storage that is not there': entry(
        tensor(numbers(6), numbers(1), of=storage(key=text('1')))
    ),
    'storage outside its folder': entry(
        tensor(numbers(6), numbers(1), of=storage(key=text('../data.pkl')))
    ),
    'storage of a number for a name': entry(
        tensor(numbers(6), numbers(1), of=storage(key=number(0)))
    ),
    'storage of a larger type': entry(
        tensor(numbers(6), numbers(1), of=storage(kind='DoubleStorage'))
    ),
    'storage of more elements': entry(
        tensor(numbers(6), numbers(1), of=storage(2**40))
    ),
    'storage of negative elements': entry(
        tensor(numbers(0), numbers(1), of=storage(-6))
    ),
    'storage of two types': entry(
        MARK
        + tensor(numbers(6), numbers(1))
        + tensor(numbers(6), numbers(1), of=storage(kind='IntStorage'))
        + TUPLE
    ),
    'storage of truth values that are none': entry(
        tensor(numbers(24), numbers(1), of=storage(24, kind='BoolStorage'))
    ),
    'storage for a value': entry(storage()),
    'class of storages for a value': entry(name('torch', 'FloatStorage')),
    'persistent id that is text': entry(text('storage') + STORED),
    'persistent id that is a number': entry(number(7) + STORED),
    'persistent id of a module': entry(
        values(text('module'), ORDERED, text('a'), text('b')) + STORED
    ),
    'persistent id of one part': entry(values(text('storage')) + STORED),
    'persistent id in text': entry(b'Pstorage\n'),
    'untyped storage': entry(
        tensor(numbers(6), numbers(1), of=storage(kind='UntypedStorage'))
    ),
    # devices and the like
    'device of nothing': entry(call(name('torch', 'device'), text('xyz'))),
    'device of a huge number': entry(
        call(name('torch', 'device'), text('cuda'), number(2**40))
    ),
    'device of a tensor': entry(
        call(name('torch', 'device'), tensor(numbers(6), numbers(1)))
    ),
    'size of negative numbers': entry(
        call(name('torch', 'Size'), numbers(-1, 2**62))
    ),
    'call of a dtype': entry(name('torch', 'float16') + EMPTY + CALL),
}


def archives() -> dict[str, bytes]:
    """Containers that were made to do harm."""
    fine = tensor(numbers(2, 3), numbers(3, 1))
    whole, old = saved(), saved(_use_new_zipfile_serialization=False)
    bomb = zipped(
        entry(NONE),
        {'archive/data/0': bytes(2**27)},
        zipfile.ZIP_DEFLATED,
    )
    order = zipped(entry(fine), {'archive/byteorder': b'big'})
    announced = legacy(
        entry(tensor(numbers(6), numbers(1), of=storage(2**40)))
    )
    floats = struct.pack('<q6f', 6, *[1.0] * 6)
    return {
        'bomb of one record': bomb,
        'compressed pickle': zipped(
            entry(fine), compress=zipfile.ZIP_DEFLATED
        ),
        'compressed with bzip2': zipped(
            entry(fine), compress=zipfile.ZIP_BZIP2
        ),
        'compressed with lzma': zipped(entry(fine), compress=zipfile.ZIP_LZMA),
        'two pickles': zipped(entry(fine), twice='archive/data.pkl'),
        'two storages of one name': zipped(
            entry(fine), twice='archive/data/0'
        ),
        'records of two archives': zipped(
            entry(fine), {'other/data.pkl': b''}
        ),
        'records outside': zipped(entry(fine), {'../../etc/passwd': b''}),
        'records that overlap': overlapping(),
        'short storage': zipped(entry(fine), {'archive/data/0': bytes(20)}),
        'long storage': zipped(entry(fine), {'archive/data/0': bytes(28)}),
        'byte order of another machine': order,
        'no pickle': whole.replace(b'data.pkl', b'data.pk_'),
        'program of TorchScript': zipped(
            entry(fine), {'archive/constants.pkl': b''}
        ),
        'gzipped': gzip.compress(whole),
        'archive of tar': tar_of(entry(fine)),
        'cut short': whole[:-100],
        'cut in the middle': whole[: len(whole) // 2],
        'damaged storage': whole.replace(
            struct.pack('<6f', *[1.0] * 6), struct.pack('<6f', *[2.0] * 6)
        ),
        'old, cut short': old[:-3],
        'old, harmful': legacy(PROGRAMS['nested reduce']),
        'old, array of objects': legacy(
            PROGRAMS['array of objects without the flag that says so']
        ),
        'old, more announced than is there': announced,
        'old, size of a storage that changes': legacy(
            entry(tensor(numbers(6), numbers(1))),
            data=struct.pack('<q', 2**40) + floats[8:],
        ),
        'old, negative size of a storage': legacy(
            entry(tensor(numbers(6), numbers(1))),
            data=struct.pack('<q', -6) + floats[8:],
        ),
        'old, storages that were not used': legacy(
            entry(NONE), pickle.dumps(['0', '1'], 2), floats
        ),
        'old, storages that are not listed': legacy(
            entry(tensor(numbers(6), numbers(1))), pickle.dumps([], 2), floats
        ),
        'old, list of storages that is none': legacy(
            entry(tensor(numbers(6), numbers(1))),
            pickle.dumps([[], {}], 2),
            floats,
        ),
        'old, view of a storage': legacy(
            entry(
                tensor(
                    *(numbers(6), numbers(1)),
                    of=storage()[:-2]
                    + values(text('v'), number(-9), number(9))
                    + TUPLE
                    + STORED,
                )
            ),
            data=floats,
        ),
        'pickle without its start': PROTO + PROGRAMS['nested reduce'],
        'start alone': old[:20],
        'empty': b'',
        'first bytes of an archive alone': b'PK\x03\x04',
    }


def crafted(name: str) -> bytes:
    """One of them."""
    return zipped(PROGRAMS[name]) if name in PROGRAMS else archives()[name]


def all_crafted() -> dict[str, bytes]:
    """All of them, by what they do."""
    return {**{name: crafted(name) for name in PROGRAMS}, **archives()}


# -- and files that are what they should be ----------------------------------


def harmless() -> list[dict]:
    """Contents of checkpoints with everything that may be in one."""
    weights = OrderedDict(a=torch.ones(2, 3), b=torch.tensor([True, False]))
    weights._metadata = OrderedDict({'': dict(version=1)})
    shared = torch.arange(12)
    parts = dict(
        view=torch.arange(6).reshape(2, 3).t(),
        repeated=torch.ones(1).expand(4),
        empty=torch.zeros(0, 4),
        scalar=torch.tensor(0.5),
        shared=[shared, shared[3:7:2]],
        half=torch.ones(2).half(),
        brain=torch.ones(2).bfloat16(),
        complex=torch.ones(2) + 1j,
        parameter=torch.nn.Parameter(torch.ones(2)),
        size=torch.Size([1, 2]),
        device=[torch.device('cpu'), torch.device('cuda:1')],
        dtype=torch.float16,
    )
    arrays = dict(
        scalar=np.float32(0.5),
        array=np.arange(6).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6).reshape(2, 3)),
        big=np.arange(3, dtype='>i4'),
        empty=np.zeros((0, 3)),
        text=np.array(['ab', 'c']),
        truth=np.array([True, False]),
        plain=[1, 2.5, None, True, 'x', b'abc', b'', {1}, frozenset('a')],
        long=2**70,
    )
    return [{'state_dict': weights}, {'meta': parts}, {'hub': arrays}]
