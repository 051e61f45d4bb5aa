"""Checkpoints are read without executing what is in them."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from nets import Chain
from torch import nn

from mmgfp import unpickler
from mmgfp.checkpoint import check_checkpoint, load_plain_checkpoint
from mmgfp.structure import KEY, Structure


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_the_weapon_works(tmp_path):
    """The check below is worth something: the file does run code."""
    torch.save({KEY: Malicious(tmp_path / 'executed')}, tmp_path / 'bad.pth')
    torch.load(tmp_path / 'bad.pth', weights_only=False)
    assert (tmp_path / 'executed').exists()


@pytest.mark.parametrize('place', ['state_dict', KEY, 'optimizer'])
@pytest.mark.parametrize('zipped', [True, False])
def test_nothing_is_executed(place, zipped, tmp_path):
    path = tmp_path / 'bad.pth'
    content = {'state_dict': Chain().state_dict(), KEY: {}}
    content[place] = Malicious(tmp_path / 'executed')
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for load in (load_plain_checkpoint, Structure.load):
        with pytest.raises(ValueError) as error:
            load(path)
        assert 'bad.pth holds objects other than tensors' in str(error.value)
        assert not (tmp_path / 'executed').exists()


def test_plain_pickle_is_not_executed(tmp_path):
    path = tmp_path / 'bad.pth'
    path.write_bytes(pickle.dumps({KEY: Malicious(tmp_path / 'executed')}))
    with pytest.raises(ValueError, match=r'bad\.pth'):
        load_plain_checkpoint(path)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
    ('program', 'refused'),
    [
        (b'cposix\nmkdir\n.', 'posix.mkdir'),
        (b"(S'x'\nicollections\nOrderedDict\n.", 'operation'),
        (b'(cnumpy\ndtype\no.', 'operation'),
        (b'\x82\x01.', 'operation'),
        (b'\x80\x02K\x01)R.', 'call of a int'),
        (b'\x80\x02cnumpy\ndtype\n)\x81.', 'instance of'),
        (b'\x80\x02ctorch._utils\n_rebuild_tensor\n}b.', 'state of a fun'),
        (b'c__builtin__\nset\n}b.', 'state of a type'),
        (b'c_codecs\nencode\n(Va\nVrot13\ntR.', 'to rot13'),
    ],
)
def test_what_a_pickle_may_not_do(program, refused):
    with pytest.raises(unpickler.RefusedError, match=refused):
        unpickler.load(io.BytesIO(program))


def test_programs_are_not_read(tmp_path):
    """Torch hands these formats to readers of their own."""
    script = tmp_path / 'script.pth'
    torch.jit.script(nn.Linear(2, 2)).save(script)
    archive = tmp_path / 'archive.pth'
    with tarfile.open(archive, 'w') as file:
        file.add(script, 'storages')
    for path, kind in ((script, 'TorchScript'), (archive, 'a tar archive')):
        with pytest.raises(ValueError, match=f'other than.*{kind}'):
            load_plain_checkpoint(path)


def test_what_mmengine_saves(tmp_path):
    """Its message hub holds log buffers and numpy scalars."""
    hub = MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float32(0.25))
    hub.update_info('epoch', 3)
    content = {
        'meta': {'epoch': 3, 'experiment_name': 'a', 'seed': 0},
        'state_dict': Chain().state_dict(),
        'optimizer': torch.optim.Adam(Chain().parameters()).state_dict(),
        'message_hub': hub.state_dict(),
        'param_schedulers': [{'last_step': 3, 'gamma': np.float64(0.1)}],
    }
    torch.save(content, tmp_path / 'epoch_3.pth')
    loaded = load_plain_checkpoint(tmp_path / 'epoch_3.pth')
    assert loaded.keys() == content.keys()
    assert loaded['message_hub']['runtime_info'] == {'epoch': 3}
    assert loaded['param_schedulers'] == content['param_schedulers']
    assert loaded['meta'] == content['meta']
    # nobody needs the log, and mmengine's class has state of its own
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert not isinstance(buffer, HistoryBuffer)
    assert all(
        torch.equal(v, loaded['state_dict'][k])
        for k, v in content['state_dict'].items()
    )


@pytest.mark.parametrize('zipped', [True, False])
def test_truncated(zipped, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        {'state_dict': Chain().state_dict(), KEY: {}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    whole = path.read_bytes()
    for share in (0, 0.01, 0.3, 0.6, 0.9, 0.999):
        part = whole[: int(len(whole) * share)]
        path.write_bytes(part)
        for load in (load_plain_checkpoint, Structure.load):
            with pytest.raises(ValueError) as error:
                load(path)
            message = str(error.value)
            assert f'epoch_1.pth ({len(part)} bytes) cannot be' in message
            assert 'truncated, damaged or no checkpoint' in message


def test_noise_and_text(tmp_path):
    path = tmp_path / 'noise.pth'
    noise = np.random.default_rng(0).bytes(3000)
    for content in (noise, b'version https://git-lfs', b'<html>404</html>'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='damaged or no checkpoint'):
            load_plain_checkpoint(path)


@pytest.mark.parametrize('content', [torch.ones(3), [1, 2], 'text'])
def test_not_a_dict(content, tmp_path):
    path = tmp_path / 'tensor.pth'
    torch.save(content, path)
    with pytest.raises(ValueError, match='expected a checkpoint') as error:
        load_plain_checkpoint(path)
    assert type(content).__name__ in str(error.value)


def test_folder(tmp_path):
    for load in (load_plain_checkpoint, check_checkpoint):
        with pytest.raises(ValueError, match='is a folder; expected a file'):
            load(tmp_path)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        load_plain_checkpoint(tmp_path / 'none.pth')
