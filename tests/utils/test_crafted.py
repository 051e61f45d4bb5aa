"""No file that is read runs code, crashes Python or fills the memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
from crafted import all_crafted

READ = """
import resource, sys, warnings
from pathlib import Path
from mmgfp.slimming.checkpoint import load_plain_checkpoint

warnings.simplefilter('error')


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB


# no line of this is needed by the next file
for path in sorted(Path(sys.argv[1]).iterdir(), key=lambda p: int(p.stem)):
    print(path.stem, end=' ', flush=True)
    before = peak()
    try:
        load_plain_checkpoint(path)
    except ValueError as error:
        message = str(error)
        assert str(path) in message and message.isprintable(), message
        assert len(message) < 1000, len(message)
    else:
        raise AssertionError('it was read')
    assert peak() - before < 200_000, peak() - before
    print('refused', flush=True)
print('end')
"""


@pytest.mark.parametrize('part', range(2))
def test_crafted_files_are_refused(part, tmp_path):
    """In a child process, which a crash would end."""
    files = all_crafted()
    names = sorted(files)[part::2]
    for i, name in enumerate(names):
        (tmp_path / f'{i}.pth').write_bytes(files[name])
    done = subprocess.run(
        [sys.executable, '-c', READ, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = done.stdout.split()[-1:]
    where = names[int(last[0])] if last and last[0].isdecimal() else last
    assert done.returncode == 0, (where, done.returncode, done.stderr[-2000:])
    assert last == ['end']
    assert done.stdout.count('refused') == len(names)
