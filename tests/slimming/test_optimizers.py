"""Whether optimisers can follow removals, before they have any state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import Chain, run
from torch import nn

from mmgfp.slimming.optimizers import check_optimizer, cut_saved_state
from mmgfp.slimming.surgery import cut_model, cut_optimizer

NAMES = ['conv1.weight', 'conv2.weight', 'conv2.bias', 'conv3.weight']
KEEP = {
    ('conv1.weight', 0): np.array([0, 2, 3, 7]),
    ('bn.weight', 0): np.array([0, 2, 3, 7]),
    ('bn.bias', 0): np.array([0, 2, 3, 7]),
    ('bn.running_mean', 0): np.array([0, 2, 3, 7]),
    ('bn.running_var', 0): np.array([0, 2, 3, 7]),
    ('conv2.weight', 1): np.array([0, 2, 3, 7]),
}
FOLLOW = ['Adadelta', 'Adagrad', 'Adam', 'Adamax', 'AdamW', 'ASGD', 'NAdam']
FOLLOW += ['RAdam', 'RMSprop', 'Rprop', 'SGD']
SETTINGS = dict(SGD=dict(momentum=0.9, nesterov=True))


def steps(model: nn.Module, optimizer, n: int = 2) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        run(model).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize('done', [0, 2])
@pytest.mark.parametrize('name', FOLLOW)
def test_optimizers_that_follow_are_not_touched(name, done):
    model = Chain()
    make = getattr(torch.optim, name)
    optimizer = make(model.parameters(), lr=0.1, **SETTINGS.get(name, {}))
    steps(model, optimizer, done)
    # as learning rate schedulers do
    optimizer.step = lambda: pytest.fail('the optimizer itself stepped')
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    assert check_optimizer(optimizer, model, NAMES) == ''
    for key, tensor in model.state_dict().items():
        assert tensor.equal(weights[key]), key
    found = optimizer.state_dict()
    assert found['param_groups'] == state['param_groups']
    for number, kept in state['state'].items():
        for key, value in kept.items():
            now = found['state'][number][key]
            torch.testing.assert_close(now, value, rtol=0, atol=0)


def test_state_of_another_shape_is_refused_before_it_exists():
    make = getattr(torch.optim, 'Adafactor', None)
    if make is None:
        pytest.skip('this torch has no Adafactor')
    model = Chain()
    optimizer = make(model.parameters())
    with pytest.raises(ValueError, match=r'Adafactor keeps "row_var" .* SGD'):
        check_optimizer(optimizer, model, NAMES)
    assert not optimizer.state
    # a vector has state of its own shape
    assert check_optimizer(optimizer, model, ['conv2.bias']) == ''


def test_a_step_that_needs_a_closure_is_refused():
    model = Chain()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match=r'LBFGS needs a closure .* SGD'):
        check_optimizer(optimizer, model, NAMES)


class Moody(torch.optim.SGD):
    """Steps only after something else has been called."""

    def step(self):
        raise RuntimeError('not in train mode')


def test_what_cannot_be_tried_is_told():
    model = Chain()
    optimizer = Moody(model.parameters(), 0.1)
    told = check_optimizer(optimizer, model, NAMES)
    assert told == 'Moody cannot be checked: RuntimeError: not in train mode'


@pytest.mark.parametrize('name', ['SGD', 'Adam'])
def test_saved_state_is_sliced_and_the_optimizer_is_not(name):
    model = Chain()
    make = getattr(torch.optim, name)
    groups = [
        dict(params=list(model.parameters())[3:]),
        dict(params=list(model.parameters())[:3]),
    ]
    optimizer = make(groups, lr=0.1, **SETTINGS.get(name, {}))
    steps(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    saved = optimizer.state_dict()
    cut_saved_state(saved, optimizer, model, KEEP)
    for number, state in before['state'].items():
        for key, value in state.items():
            kept = optimizer.state_dict()['state'][number][key]
            torch.testing.assert_close(kept, value, rtol=0, atol=0)
    cut_optimizer(optimizer, model, KEEP)
    cut_model(model, KEEP)
    for number, state in optimizer.state_dict()['state'].items():
        for key, value in state.items():
            slim = saved['state'][number][key]
            torch.testing.assert_close(slim, value, rtol=0, atol=0)
