"""Files appear whole, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from mmgfp.utils.atomic import complete


def test_two_writers_of_one_path_do_not_mix(tmp_path):
    path = tmp_path / 'folder' / 'kept.json'
    with complete(path) as first, complete(path) as second:
        Path(first).write_text('first')
        Path(second).write_text('second, longer')
        assert Path(first).read_text() == 'first'
    assert path.read_text() == 'first'  # who ends last
    assert os.listdir(path.parent) == ['kept.json']


def test_one_of_two_writers_fails(tmp_path):
    path = tmp_path / 'kept.json'
    with complete(path) as good:
        Path(good).write_text('good')
        with pytest.raises(OSError, match='full'), complete(path) as bad:
            Path(bad).write_text('half')
            raise OSError('disk full')
    assert path.read_text() == 'good'
    assert os.listdir(tmp_path) == ['kept.json']


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_others_may_read_what_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        with complete(tmp_path / 'kept.json') as partial:
            Path(partial).write_text('all')
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / 'kept.json').stat().st_mode)
    assert mode == 0o666 & ~umask


def test_the_same_checkpoint_is_the_same_file(tmp_path):
    found = []
    for _ in range(2):
        with complete(tmp_path / 'kept.pth') as partial:
            torch.save({'weight': torch.arange(4)}, partial)
        found.append((tmp_path / 'kept.pth').read_bytes())
    assert found[0] == found[1]
