"""Feeds broken and crafted files to everything that reads files.

    pip install --no-deps atheris
    nice python tests/fuzz_checkpoint.py --minutes 60

Checkpoints of both formats and structure files are changed at random, byte by
byte and in their parts: operations of the pickle, records of the archive. What
reaches new lines of the readers is changed further. Every file has to load, or
to end in one line that names it; a crash of Python, memory beyond a limit, or
minutes of work end the run. `fuzz_checkpoint.json` has the last results.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import pickle
import pickletools
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import atheris
import numpy as np
import torch
from crafted import all_crafted, harmless, number, text

READERS = (
    *('archive', 'unpickler', 'checkpoint', 'structure', 'scores', 'plain'),
)

with atheris.instrument_imports(include=[f'mmgfp.{name}' for name in READERS]):
    import mmgfp
    from mmgfp.slimming.checkpoint import (
        load_plain_checkpoint,
        meta_of,
        weights_of,
    )
    from mmgfp.slimming.structure import KEY, Axis, Structure

PACKAGE = Path(mmgfp.__file__).parent
RESULT = Path(__file__).with_suffix('.json')
LAST = 4  # results to keep
MAX_LENGTH = 2**16  # of a file

NAMES = [
    *('numpy dtype', 'numpy ndarray', 'numpy.core.multiarray _reconstruct'),
    *('numpy._core.multiarray scalar', 'numpy.dtypes ObjectDType'),
    *('collections OrderedDict', '_codecs encode', 'builtins getattr'),
    *('builtins set', 'builtins frozenset', 'builtins bytearray'),
    *('builtins eval', 'os system', 'torch Size', 'torch device'),
    *('torch float16', 'torch FloatStorage', 'torch BoolStorage'),
    *('torch ComplexDoubleStorage', 'torch UntypedStorage'),
    *('torch._utils _rebuild_tensor', 'torch._utils _rebuild_tensor_v2'),
    *('torch._utils _rebuild_parameter', 'torch._utils _rebuild_qtensor'),
    *('torch._utils _rebuild_sparse_tensor', 'torch.storage _load_from_bytes'),
    'mmengine.logging.history_buffer HistoryBuffer',
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**40),
    *(2**53, 2**60, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
]
WORDS = ['O', 'O8', 'V8', 'S0', 'U1', 'f8', 'b1', 'M8[ns]', '|', '<', '0']
WORDS += [
    'storage',
    'cpu',
    'cuda:0',
    'latin1',
    'rot13',
    'version',
    '_metadata',
]
WORDS += ['mmgfp_structure', 'state_dict', 'tensors', 'scores', '\ud800', '\n']


# -- files to begin with -----------------------------------------------------


def structure() -> dict:
    axes = {
        ('stem.weight', 0): Axis(8, np.array([0, 1, 4])),
        ('conv.weight', 1): Axis(8, np.array([0, 1, 4])),
    }
    plain = Structure(
        *(axes, 'Net', 'net.py', (8, 8), {'flops': 9.0}, {'flops': 3.0})
    ).to_dict()
    group = dict(layers=['stem'], scores=[1.5, None], removed=[-1, 2])
    plain['scores'] = dict(
        normalize_by='acts', step=2, iteration=9, groups=dict(stem=group)
    )
    plain['attributes'] = {'stem.out_channels': dict(size=8, keep=[[0, 3]])}
    plain['version'] = 2
    return plain


def seeds() -> list[bytes]:
    found = []
    for content in [{KEY: structure()}, *harmless()]:
        for options in (
            dict(),
            dict(_use_new_zipfile_serialization=False),
            dict(pickle_protocol=4),
        ):
            file = BytesIO()
            torch.save(content, file, **options)
            found.append(file.getvalue())
    found += [
        data for data in all_crafted().values() if len(data) < MAX_LENGTH
    ]
    return [*found, json.dumps(structure()).encode()]


# -- changing them -----------------------------------------------------------


def split(program: bytes) -> list[bytes]:
    """The operations of a pickle, as far as they can be told apart."""
    places, end = [], 0
    try:
        for _, _, place in pickletools.genops(program):
            places.append(place)
        end = places[-1] + 1
    except Exception:  # what is broken already
        end = places[-1] if places else 0
    parts = [program[a:b] for a, b in zip(places, [*places[1:], end])]
    rest = program[end:]
    return [*parts, rest] if rest else parts


def operation(rng: random.Random) -> bytes:
    """Something that a pickle may hold."""
    kind = rng.randrange(8)
    if kind == 0:
        return b'c' + rng.choice(NAMES).replace(' ', '\n').encode() + b'\n'
    if kind == 1:
        return number(rng.choice(NUMBERS))
    if kind == 2:
        return text(rng.choice(WORDS))
    if kind == 3:
        return rng.choice([b'h', b'q']) + bytes([rng.randrange(60)])
    if kind == 4:
        return rng.choice([b'\x85', b'\x86', b')', b']', b'}', b'\x8f']) * (
            rng.choice([1, 1, 1, 2, 70, 1000])
        )
    if kind == 5:
        size = rng.choice([1, 10, 2**16, 2**31 - 1, 2**32 - 1])
        return rng.choice([b'X', b'B', b'T']) + size.to_bytes(4, 'little')
    if kind == 6:
        return rng.choice([b'R', b'b', b'\x81', b'Q', b'\x93', b'(', b't'])
    return bytes([rng.randrange(256)])


def change_program(program: bytes, rng: random.Random) -> bytes:
    parts = split(program)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not parts:
            return program
        i, j = sorted(rng.randrange(len(parts)) for _ in range(2))
        kind = rng.randrange(7)
        if kind == 0:
            del parts[i : i + rng.choice([1, 1, 3, 10])]
        elif kind == 1:
            parts.insert(i, operation(rng))
        elif kind == 2:
            parts[i] = operation(rng)
        elif kind == 3:
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 4:
            parts[i:i] = parts[j : j + rng.choice([1, 5, 20])]
        elif kind == 5 and len(parts[i]) > 1:  # its argument
            data = bytearray(parts[i])
            data[rng.randrange(1, len(data))] = rng.randrange(256)
            parts[i] = bytes(data)
        elif kind == 6:
            parts[i:j] = parts[i:j] * rng.choice([2, 3])
    return b''.join(parts)[:MAX_LENGTH]


def change_archive(data: bytes, rng: random.Random) -> bytes:
    """A zip file with a record, its name or its kind changed."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        records = [(i.filename, archive.read(i)) for i in archive.infolist()]
    kind, place = rng.randrange(9), rng.randrange(len(records))
    methods = dict.fromkeys(range(len(records)), zipfile.ZIP_STORED)
    name, content = records[place]
    if kind < 5:
        records = [
            (n, change_program(c, rng) if n.endswith('.pkl') else c)
            for n, c in records
        ]
    elif kind == 5:
        methods[place] = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    elif kind == 6:
        records.append((rng.choice([name, f'x/{name}', 'y']), content))
        methods[len(records) - 1] = zipfile.ZIP_STORED
    elif kind == 7:
        size = rng.choice([0, 1, len(content) * 2, 2**15])
        records[place] = name, (content * 2 + bytes(size))[:size]
    else:
        del records[place]
    file = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, 'w') as archive:
        warnings.simplefilter('ignore')  # two of one name
        for i, (name, content) in enumerate(records):
            archive.writestr(name, content, methods[i])
    return file.getvalue()


def change(data: bytes, most: int, seed: int) -> bytes:
    """The next file to try; what libFuzzer calls a custom mutator."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return atheris.Mutate(data, most)
    try:
        if data[:2] == b'PK':
            return change_archive(data, rng)[:most]
        if data[:1] == pickle.PROTO:
            return change_program(data, rng)[:most]
    except Exception:  # an archive that is broken already
        return atheris.Mutate(data, most)
    return atheris.Mutate(data, most)


# -- trying them -------------------------------------------------------------


class Worker:
    """Writes each file and reads it in all ways."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / 'input.pth', folder / 'input.json']

    def __call__(self, data: bytes) -> None:
        path = self.files[data[:1] == b'{']
        path.write_bytes(data)
        try:
            if path.suffix == '.json':
                use_structure(Structure.load(path))
            else:
                use(load_plain_checkpoint(path), path)
        except ValueError as error:
            check(error, path)


def use_structure(found: Structure) -> None:
    """What was read can be written and read again."""
    again = Structure.from_dict(found.to_dict())
    assert again.to_dict() == found.to_dict()


def use(found: dict, path: Path) -> None:
    """Do what others do with what was read."""
    repr(found)
    copy.deepcopy(found)
    values = [found]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, (list, tuple)):
            values += value
        elif isinstance(value, torch.Tensor):
            value.detach().clone().double().sum()
        elif isinstance(value, np.ndarray) and value.dtype.kind != 'U':
            value.sum() if value.dtype.kind != 'S' else value.tolist()
    meta_of(found, path)
    if KEY in found:
        use_structure(Structure.from_dict(found[KEY], str(path)))
    weights_of(found, path)


def check(error: ValueError, path: Path) -> None:
    """It has to be ours, of one line that names the file."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    where = Path(frame.tb_frame.f_code.co_filename)
    message = str(error)
    if (
        type(error) is not ValueError
        or where.parent != PACKAGE
        or str(path) not in message
        or not message.isprintable()
    ):
        raise AssertionError(f'{where}: {message!r}') from error


def work(arguments: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    atheris.Setup(
        [sys.argv[0], *arguments], Worker(folder), custom_mutator=change
    )
    atheris.Fuzz()


# -- the command -------------------------------------------------------------


def fuzz(minutes: float, corpus: Path) -> dict:
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds()):
        (corpus / f'seed_{i}').write_bytes(seed)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, __file__, '--worker', folder, str(corpus)),
            f'-max_total_time={round(minutes * 60)}',
            *(f'-max_len={MAX_LENGTH}', '-len_control=0', '-timeout=60'),
            *('-rss_limit_mb=4096', '-malloc_limit_mb=1024'),
            *('-print_final_stats=1', f'-artifact_prefix={corpus.parent}/'),
        ]
        began = time.time()
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, errors='replace'
        )
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    sys.stderr.write(done.stderr[-5000:])
    (number,) = re.findall(r'number_of_executed_units: (\d+)', done.stderr)
    return dict(
        date=time.strftime('%Y-%m-%d'),
        seconds=round(time.time() - began),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime),
        files=int(number),
        crashes=int(done.returncode != 0),
        readers=digest(),
        versions=dict(
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
            atheris=atheris_version(),
            mmgfp=mmgfp.__version__,
        ),
        machine=f'{os.cpu_count()} CPU cores, shared, no GPU',
    )


def digest() -> str:
    """Of the files that were tried."""
    texts = [(PACKAGE / f'{name}.py').read_bytes() for name in READERS]
    return hashlib.sha256(b''.join(texts)).hexdigest()[:12]


def atheris_version() -> str:
    from importlib.metadata import version

    return version('atheris')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument(
        '--corpus',
        type=Path,
        default=Path(tempfile.gettempdir(), 'mmgfp_fuzz', 'corpus'),
        help='folder of the files that were worth keeping; a file that ends '
        'the run is written beside it',
    )
    args = parser.parse_args()
    result = fuzz(args.minutes, args.corpus)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else []
    text = json.dumps([*results, result][-LAST:], indent=1) + '\n'
    RESULT.write_text(text)
    print(text)
    raise SystemExit(result['crashes'])


if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']:
        work(sys.argv[3:], Path(sys.argv[2]))
    else:
        main()
