"""Runners with strategies, and networks that processes have in pieces."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import FlexibleRunner, Runner
from test_resume import forget_after_checkpoint
from torch import nn
from toy import (
    ToyClassifier,
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
    train,
)

from mmgfp import Structure
from mmgfp.slimming.checkpoint import load_plain_checkpoint

STRATEGIES = pytest.importorskip('mmengine._strategy')


def flexible(work_dir, *hooks, cut_to=1, resume=False, **changes):
    hook = dict(cut_to=cut_to, after_target='train')
    data = loader(augment=True)
    config = make_config(work_dir, hook, train_dataloader=data, **changes)
    config.env_cfg = dict()
    config.custom_hooks += hooks
    config.resume = resume
    return FlexibleRunner.from_cfg(config)


@pytest.mark.parametrize('cut_to', [1, 4])
def test_the_default_strategy_prunes_saves_and_resumes(tmp_path, cut_to):
    whole = flexible(tmp_path / 'whole', cut_to=cut_to)
    whole.train()
    assert pruning_hook(whole).pruner.net.ratio('flops') <= 0.5
    slim = ToyClassifier()
    Structure.load(tmp_path / 'whole/flops_0.50.json').apply(slim)
    saved = load_plain_checkpoint(tmp_path / 'whole/flops_0.50.pth')
    slim.load_state_dict(saved['state_dict'])

    stopped = tmp_path / 'stopped'
    stop = dict(type='Stop', iteration=10)
    with pytest.raises(KeyboardInterrupt):
        flexible(stopped, stop, cut_to=cut_to).train()
    forget_after_checkpoint(stopped)
    torch.manual_seed(123)
    resumed = flexible(stopped, cut_to=cut_to, resume=True)
    resumed.train()
    assert removals(stopped) == removals(tmp_path / 'whole')
    assert len(removals(stopped)) >= 3
    expected = load(tmp_path / 'whole/epoch_6.pth')
    found = load(stopped / 'epoch_6.pth')
    for name, tensor in expected['state_dict'].items():
        assert tensor.equal(found['state_dict'][name]), name
    for key, state in expected['optimizer']['state'].items():
        other = found['optimizer']['state'][key]
        assert torch.equal(state['momentum_buffer'], other['momentum_buffer'])


def test_the_same_channels_as_with_the_other_runner(tmp_path):
    flexible(tmp_path / 'flexible').train()
    hook = dict(cut_to=1, after_target='train')
    data = loader(augment=True)
    train(tmp_path / 'usual', hook, train_dataloader=data)
    assert removals(tmp_path / 'flexible') == removals(tmp_path / 'usual')


def refused(runner) -> str:
    with pytest.raises(ValueError) as error:
        runner.train()
    assert runner.iter == 0
    text = str(error.value)
    assert '\n' not in text
    return text


ONE_DEVICE = STRATEGIES.SingleDeviceStrategy


@pytest.mark.parametrize(
    'name', ['FSDPStrategy', 'DeepSpeedStrategy', 'ColossalAIStrategy']
)
@pytest.mark.parametrize('loads', [True, False])
def test_strategies_that_take_networks_apart(tmp_path, name, loads):
    """By their names and bases: the real ones need more than one process."""
    real = getattr(STRATEGIES, name, None)
    if real is None:
        pytest.skip(f'this stack has no {name}')
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=ToyClassifier().state_dict()), path)
    runner = flexible(tmp_path, load_from=str(path) if loads else None)
    if issubclass(real, ONE_DEVICE):
        kind = type(name, (ONE_DEVICE,), {})
    else:
        kind = type(name, (STRATEGIES.BaseStrategy,), dict(vars(ONE_DEVICE)))
    runner.strategy.__class__ = kind
    text = refused(runner)
    assert f'the strategy {name} divides the network' in text
    assert 'expected SingleDeviceStrategy or DDPStrategy' in text


@MODEL_WRAPPERS.register_module(force=True)
class InPieces(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize('where', ['whole', 'part'])
def test_wrappers_that_take_networks_apart(tmp_path, where):
    runner = Runner.from_cfg(make_config(tmp_path))
    if where == 'whole':
        runner.model = InPieces(runner.model)
    else:
        runner.model.conv1 = InPieces(runner.model.conv1)
    text = refused(runner)
    what = dict(whole='the model', part='the part conv1 of the model')[where]
    assert text.startswith(f'{what} is wrapped by InPieces')
    assert 'MMDistributedDataParallel around all of it' in text
