"""What commands that start runners check first."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmgfp.commands import test, train
from mmgfp.commands.launching import check_hooks

CONFIG = """
model = dict(type='A')
train_dataloader = dict(batch_size=1)
load_from = 'baseline.pth'
custom_hooks = [dict(type='mmgfp.PruningHook', target=dict(flops=0.5))]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)
    return 'config.py'


def refused(command, *arguments: str) -> str:
    """Returns the error of a command."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        command.make_config(command.parse_args(arguments))
    text = str(error.value)
    assert '\n' not in text
    return text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['custom_hooks.1.interval=3'], 'Index 1 exceeds the length'),
        (['load_from.0=3'], 'such as custom_hooks.0.interval=10'),
    ],
)
def test_options_that_name_nothing(config, options, message):
    text = refused(train, config, '--cfg-options', *options)
    assert message in text
    assert '--cfg-options ' + options[0].split('=')[0] in text


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (dict(criterion=dict(type='KFAC')), "custom_hooks[0] has no 'type'"),
        (
            dict(type='mmgfp.PruningHok'),
            "no hook 'mmgfp.PruningHok'; did you mean 'PruningHook'?",
        ),
        (
            dict(type='mmgfp.Profiler'),
            "no hook 'mmgfp.Profiler'. Expected one of FisherPruningHook, ",
        ),
    ],
)
def test_hooks_that_are_none(hook, message):
    with pytest.raises(ValueError) as error:
        check_hooks(Config(dict(custom_hooks=[hook])))
    assert message in str(error.value)


def test_hooks_that_others_register():
    kinds = ('EMAHook', 'mmgfp.StructureHook', 'mmgfp.EMAHook')
    hooks = [*(dict(type=kind) for kind in kinds), object()]
    check_hooks(Config(dict(custom_hooks=hooks)))
    check_hooks(Config(dict(custom_hooks=None)))


def test_hooks_are_checked_by_each_command(config):
    option = ('--cfg-options', 'custom_hooks.0.type=mmgfp.Hook')
    assert 'there is no hook' in refused(train, config, *option)
    assert 'there is no hook' in refused(test, config, 'a.pth', *option)


def test_checkpoints_that_do_not_exist(config):
    text = refused(train, config)
    assert 'the checkpoint baseline.pth does not exist: expected ' in text
    assert 'load_from of the config, or after --cfg-options load_from=' in text
    text = refused(train, config, '--resume', 'epoch_1.pth')
    assert 'epoch_1.pth does not exist' in text
    assert 'of the interrupted training after --resume' in text
