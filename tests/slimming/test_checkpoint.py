"""Checkpoints are read without executing what is in them."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted import crafted, harmless
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import PARAM_SCHEDULERS
from nets import Chain
from torch import nn

from mmgfp.slimming.checkpoint import (
    check_checkpoint,
    load_plain_checkpoint,
    meta_of,
    weights_of,
)
from mmgfp.slimming.structure import KEY, Structure


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
    ('name', 'why'),
    [
        ('reduce of eval', r'plain types \(builtins\.eval\)'),
        ('call of a number', 'call of a int'),
        ('old instance', 'an operation that torch never writes'),
        ('new object of OrderedDict', r'instance of a collections\.Ordered'),
        ('state of a function', r'state of a torch\._utils\._rebuild'),
        ('encode to a program', "_codecs.encode to 'rot13'"),
        ('array of objects', 'elements of the type O'),
        ('tensor beyond its storage', r'shape \(7,\) .* of 6 elements'),
        ('storage that is not there', "its record 'data/1' is missing"),
        ('list that contains itself', 'nested more than 64 deep'),
        ('lists of the list before', 'repeat each other too often'),
        ('bomb of one record', 'its records are compressed'),
        ('records that overlap', 'its records are larger than the file'),
        ('damaged storage', "Bad CRC-32 for file 'archive/data/0'"),
    ],
)
def test_why_a_file_is_refused(name, why, tmp_path):
    path = tmp_path / 'bad.pth'
    path.write_bytes(crafted(name))
    with pytest.raises(ValueError, match=why):
        load_plain_checkpoint(path)


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


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize(
    'settings',
    [
        dict(type='MultiStepLR', milestones=[2, 3]),
        dict(type='OneCycleLR', eta_max=0.1, total_steps=9),
        dict(
            type='OneCycleLR',
            eta_max=0.1,
            total_steps=9,
            anneal_strategy='linear',
        ),
        dict(
            type='CosineRestartLR',
            periods=[2],
            restart_weights=[1],
            eta_min=0,
        ),
        dict(type='ReduceOnPlateauLR'),
        dict(type='PolyLR'),
        dict(type='StepLR', step_size=2),
    ],
    ids=lambda settings: settings['type'],
)
def test_learning_rates_of_mmengine(settings, protocol, tmp_path):
    """Every checkpoint of a training has the state of its schedule."""
    optimizer = torch.optim.SGD(Chain().parameters(), lr=0.1, momentum=0.9)
    schedule = PARAM_SCHEDULERS.build(
        settings, default_args=dict(optimizer=optimizer)
    )
    state = schedule.state_dict()
    path = tmp_path / 'epoch_1.pth'
    torch.save({'a': state}, path, pickle_protocol=protocol)
    loaded = load_plain_checkpoint(path)['a']
    assert loaded.keys() == state.keys()
    if 'milestones' in state:
        assert loaded['milestones'] == state['milestones']


@pytest.mark.parametrize(
    'options',
    [{}, {'_use_new_zipfile_serialization': False}, {'pickle_protocol': 4}],
    ids=['zip', 'before torch 1.6', 'protocol 4'],
)
def test_everything_that_may_be_in_a_checkpoint(options, tmp_path):
    for content in harmless():
        torch.save(content, tmp_path / 'a.pth', **options)
        assert_same(content, load_plain_checkpoint(tmp_path / 'a.pth'))


def assert_same(expected, found) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert getattr(found, '_metadata', {}) == (
            getattr(expected, '_metadata', {})
        )
        for key, value in expected.items():
            assert_same(value, found[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(expected, found):
            assert_same(a, b)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert found.requires_grad == expected.requires_grad
        assert torch.equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype.newbyteorder('=')
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        assert np.array_equal(found, expected)
    else:
        assert found == expected


def test_tensors_that_share_memory_still_do(tmp_path):
    a = torch.arange(12)
    torch.save({'a': a, 'b': a[3:7]}, tmp_path / 'a.pth')
    loaded = load_plain_checkpoint(tmp_path / 'a.pth')
    loaded['a'][3] = 50
    assert loaded['b'].tolist() == [50, 4, 5, 6]


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


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'state_dict': torch.ones(2)}, 'got a Tensor'),
        ({'state_dict': {'a': 1}}, "got 1 for 'a'"),
        ({'state_dict': {3: torch.ones(2)}}, 'got a dict'),
    ],
)
def test_weights_that_are_none(content, words):
    with pytest.raises(ValueError, match=f'a.pth holds no weights.*{words}'):
        weights_of(content, 'a.pth')


def test_meta_that_is_none():
    assert meta_of({}, 'a.pth') == meta_of({'meta': None}, 'a.pth') == {}
    with pytest.raises(ValueError, match='a dict under meta, got a Tensor'):
        meta_of({'meta': torch.ones(2)}, 'a.pth')


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        load_plain_checkpoint(tmp_path / 'none.pth')
