"""The two kinds of files that :func:`torch.save` writes, read into memory.

A zip archive of a pickle and one record for each storage, or, before torch
1.6, a sequence of pickles and then the storages. Announced sizes are compared
with the size of the file before memory is allocated.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .unpickler import (
    ReadLimits,
    RefusedError,
    Source,
    Storage,
    StorageType,
    load,
)

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def kind_of_file(
    path: str | os.PathLike,
) -> Literal['zip', 'pickle', 'tar'] | None:
    """Returns the type of a file from its first bytes; None if unknown."""
    with open(path, 'rb') as file:
        start = file.read(512)
    if start.startswith(b'PK\x03\x04'):  # as torch recognises it
        return 'zip'
    if start.startswith(b'\x80'):
        return 'pickle'
    return 'tar' if start[257:262] == b'ustar' else None


def read_archive(path: str | os.PathLike) -> Any:
    """Read what :func:`torch.save` wrote, onto the CPU.

    Args:
        path (str | os.PathLike): The file.

    Raises:
        RefusedError: If it names an object that is not on the list.
        Exception: Of any type, if it is damaged.
    """
    kind = kind_of_file(path)
    if kind == 'tar':  # which torch wrote before 0.1.10
        raise RefusedError('a tar archive')
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        if kind == 'zip':
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive, size)
        return _read_pickles(file, size)


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    records = _records(archive, size)
    if 'byteorder' in records:
        order = archive.read(records['byteorder']).decode('ascii')
        if order != sys.byteorder:
            raise ValueError('written on a machine with another byte order')
    storages: dict[str, Storage] = {}

    def storage(persistent: Any) -> Storage:
        kind, key, numel = _parse(persistent)
        if key not in storages:
            record = _record(records, f'data/{key}')
            if numel * kind.itemsize != record.file_size:
                raise ValueError(
                    f'a storage of {numel} elements and {record.file_size} '
                    'bytes'
                )
            memory = torch.empty(record.file_size, dtype=torch.uint8)
            with archive.open(record) as source:
                _fill(memory, source)
            storages[key] = Storage(memory, kind)
            storages[key].check()
        return _same(storages[key], kind, numel)

    program = archive.read(_record(records, 'data.pkl'))
    source = Source(BytesIO(program), len(program))
    return load(source, ReadLimits(size), storage)


def _records(
    archive: zipfile.ZipFile, size: int
) -> dict[str, zipfile.ZipInfo]:
    """Returns the records by name, without their common folder.

    Torch does not compress records. Compressed ones are refused, because they
    could be far larger than the file.
    """
    if any(name.endswith('/constants.pkl') for name in archive.namelist()):
        raise RefusedError('TorchScript')
    records: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for record in archive.infolist():
        folder, _, name = record.filename.partition('/')
        folders.add(folder)
        if (
            record.compress_type != zipfile.ZIP_STORED
            or record.compress_size != record.file_size
            or record.flag_bits & 1  # encrypted
        ):
            raise ValueError('its records are compressed')
        if name in records or len(folders) > 1:
            raise ValueError('it has records of more than one archive')
        records[name] = record
        size -= record.file_size
    if size < 0:
        raise ValueError('its records are larger than the file')
    return records


def _record(
    records: Mapping[str, zipfile.ZipInfo], name: str
) -> zipfile.ZipInfo:
    if name not in records:
        raise ValueError(f'its record {name!r} is missing')
    return records[name]


def _read_pickles(file: IO[bytes], size: int) -> Any:
    source, limits = Source(file, size), ReadLimits(size)
    if load(source, limits) != MAGIC or load(source, limits) != PROTOCOL:
        raise ValueError('it does not begin like a checkpoint')
    load(source, limits)  # a description of the machine
    storages: dict[str, Storage] = {}
    announced = 0

    def storage(persistent: Any) -> Storage:
        nonlocal announced
        kind, key, numel = _parse(persistent)
        if key not in storages:
            announced += numel * kind.itemsize
            if announced > source.left:
                raise EOFError(
                    f'{announced} bytes are announced, {source.left} are left'
                )
            memory = torch.empty(numel * kind.itemsize, dtype=torch.uint8)
            storages[key] = Storage(memory, kind)
        return _same(storages[key], kind, numel)

    content = load(source, limits, storage)
    keys = load(source, limits)
    if type(keys) is not list or sorted(keys) != sorted(storages):
        raise ValueError('its list of storages differs from those in use')
    for key in keys:
        numel = int.from_bytes(source.read(8), 'little')
        _same(storages[key], storages[key].kind, numel)
        _fill(storages[key].memory, source)
        storages[key].check()
    return content


def _parse(persistent: Any) -> tuple[StorageType, str, int]:
    """Returns type, name and number of elements of a storage."""
    if (
        type(persistent) is not tuple
        or not 5 <= len(persistent) <= 6
        or list(map(type, persistent[:5])) != [str, StorageType, str, str, int]
        or persistent[0] != 'storage'
        or persistent[5:] not in ((), (None,))  # no view of another storage
        or persistent[4] < 0
    ):
        raise ValueError('the description of a storage is not valid')
    _, kind, key, _, numel = persistent[:5]
    return kind, key, numel


def _same(storage: Storage, kind: StorageType, numel: int) -> Storage:
    if storage.kind != kind or storage.numel != numel:
        raise ValueError('a storage has more than one type or size')
    return storage


def _fill(memory: Tensor, source: Any) -> None:
    """Fill the memory with bytes of the file."""
    if memory.numel():
        data: np.ndarray = memory.numpy()
        read = source.readinto(data)
        if read != len(data):
            raise EOFError(f'{len(data)} bytes are announced, {read} are left')
