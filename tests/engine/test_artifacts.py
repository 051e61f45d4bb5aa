"""The configs that pruning writes: which hooks they have, and their text."""

from __future__ import annotations

import enum
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from shipped import load, pruning_configs
from toy import ToyClassifier, make_config, train

from mmgfp import FisherPruningHook
from mmgfp.engine.saved import finetune_config
from mmgfp.registry import HOOKS as OUR_HOOKS


@HOOKS.register_module(force=True)
class OtherCriterionHook(FisherPruningHook):
    pass


@OUR_HOOKS.register_module(force=True)
class ScopedCriterionHook(FisherPruningHook):
    pass


# -- which hooks stay --------------------------------------------------------

OURS = {
    'name with scope': dict(type='mmgfp.FisherPruningHook'),
    'name and scope': dict(type='FisherPruningHook', _scope_='mmgfp'),
    'dotted name': dict(type='mmgfp.engine.hook.FisherPruningHook'),
    'class': dict(type=FisherPruningHook),
    'class that is not imported': dict(
        type=LazyObject('mmgfp', 'FisherPruningHook')
    ),
    'subclass by name': dict(type='OtherCriterionHook'),
    'subclass by name with scope': dict(type='mmgfp.ScopedCriterionHook'),
    'subclass': dict(type=OtherCriterionHook),
}
OTHERS = {
    'name': dict(type='EMAHook'),
    'class': dict(type=EMAHook),
    'not known': dict(type='HookOfNobody'),
    'not known in a scope': dict(type='mmgfp.NoHook'),
}


def hooks_of(text: str, folder: Path) -> list[str]:
    config = loaded(text, folder)
    return [hook.type for hook in config.custom_hooks[:-1]]


def loaded(text: str, folder: Path) -> Config:
    path = folder / 'finetune.py'
    path.write_text(text)
    return Config.fromfile(path, import_custom_modules=False)


@pytest.mark.parametrize('kind', OURS)
def test_pruning_hook_is_left_out_whatever_its_criterion(kind, tmp_path):
    config = make_config(tmp_path)
    config.custom_hooks = [OURS[kind], dict(type='StructureLog')]
    config.default_hooks = dict(pruning=OURS[kind], timer=None)
    text = finetune_config(config, 'slim', {})
    assert hooks_of(text, tmp_path) == ['StructureLog']
    assert loaded(text, tmp_path).default_hooks == dict(timer=None)


@pytest.mark.parametrize('kind', OTHERS)
def test_other_hooks_stay(kind, tmp_path):
    config = make_config(tmp_path)
    config.custom_hooks = [OTHERS[kind]]
    name = OTHERS[kind]['type']
    if isinstance(name, type):
        name = 'mmengine.hooks.ema_hook.EMAHook'
    assert hooks_of(finetune_config(config, 'slim', {}), tmp_path) == [name]


def test_what_another_criterion_pruned_is_finetuned(tmp_path):
    train(tmp_path, hook=dict(type='OtherCriterionHook'))
    config = Config.fromfile(tmp_path / 'flops_0.50_finetune.py')
    config.train_cfg.max_epochs = 1
    config.custom_hooks = config.custom_hooks[1:]  # wants a pruning hook
    runner = Runner.from_cfg(config)
    runner.train()
    assert len(runner.model.conv1.weight) < 12


# -- the text ----------------------------------------------------------------


def text_and_back(folder: Path, **settings) -> Config:
    config = make_config(folder, extra=settings)
    return loaded(finetune_config(config, 'slim', {}), folder).extra


@pytest.mark.parametrize(
    'value',
    [
        *(None, True, 1, -2.5, 1e-5, "it's", 'two\nlines', b'x', 2j),
        *(math.inf, -math.inf, (1,), (), [], {}, [[1, (2, [3])], ()]),
        *({1, 2}, set(), frozenset({'a'}), range(3), {1: 'a', (0, 1): 'b'}),
        *({'class': 1, 'a b': 2, "it's": 3}, Path('data/images')),
        *(torch.float32, torch.nn.GELU, [torch.nn.GELU], math.sqrt),
        [dict(long='x' * 60, other=[1] * 30)],
    ],
    ids=repr,
)
def test_a_value_loads_as_it_was(value, tmp_path):
    found = text_and_back(tmp_path, value=value)['value']
    assert found == value
    assert type(found) is type(value) or isinstance(value, dict)


def test_numbers_that_equal_nothing_and_those_of_numpy(tmp_path):
    numpy = torch.zeros(1).numpy()
    found = text_and_back(tmp_path, nan=math.nan, zero=numpy[0])
    assert math.isnan(found.nan)
    assert found.zero == 0 and type(found.zero) is float


def test_types_are_written_as_names(tmp_path):
    config = make_config(tmp_path, model=dict(type=ToyClassifier))
    config.extra = dict(type=LazyObject('torch.nn', 'GELU'))
    config.Path = Path  # what the file of a config imports
    child = loaded(finetune_config(config, 'slim', {}), tmp_path)
    assert child.model.type == 'mmgfp.PrunedModel'
    assert child.model.architecture == 'toy.ToyClassifier'
    assert child.extra.type == 'torch.nn.modules.activation.GELU'
    assert 'Path' not in child


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    'value', [lambda x: x, torch.zeros(2), torch.zeros(2).numpy(), Colour.RED]
)
def test_a_value_without_text_is_an_error_before_pruning(value, tmp_path):
    config = make_config(tmp_path, extra=dict(some=[value]))
    with pytest.raises(ValueError, match=r'extra\.some\[0\]=.*cannot be wr'):
        finetune_config(config, 'slim', {})


def test_pruning_does_not_start_with_what_it_could_not_write(tmp_path):
    config = make_config(tmp_path, extra=Colour.RED)
    runner = Runner.from_cfg(config)
    with pytest.raises(
        ValueError, match=r'extra=<Colour\.RED: 1>, of type Col'
    ):
        runner.train()
    assert runner.iter == 0
    assert not list(tmp_path.glob('flops*'))


@pytest.mark.parametrize('path', pruning_configs(), ids=lambda path: path.stem)
def test_shipped_configs_load_as_they_were(path, tmp_path):
    config = load(path)
    child = loaded(finetune_config(config, 'slim', {}), tmp_path)
    same = {
        key: value
        for key, value in config.to_dict().items()
        if key not in ('custom_hooks', 'custom_imports', 'model', 'load_from')
    }
    assert {key: child.to_dict()[key] for key in same} == same
    assert child.model.architecture in ('mmgfp.PrunedModel', config.model.type)
