"""From a model to groups: what is frozen and why, and bad input."""

from __future__ import annotations

import pytest
import torch
from nets import Chain, InvertedResidual, Net, Residual, conv, run
from torch import nn

from mmgfp.finder import find_groups, restrict_groups


def reasons(groups) -> dict[str, str]:
    return {g.name: g.frozen for g in groups if g.producers}


def test_forward_that_fails():
    with pytest.raises(RuntimeError) as error:
        find_groups(Chain(), lambda model: model(torch.zeros(1, 4, 8, 8)))
    message = str(error.value)
    assert 'Chain does not run on the demo input' in message
    assert 'to have 3 channels, but got 4' in message
    assert 'input_shape=(H, W)' in message


def test_mode_is_restored_when_the_forward_fails():
    model = Chain().train()
    with pytest.raises(RuntimeError):
        find_groups(model, lambda model: model(torch.zeros(1, 4, 8, 8)))
    assert all(m.training for m in model.modules())


def test_frozen_stages():
    model = Residual()
    model.stem.requires_grad_(False)
    model.a.requires_grad_(False)
    found = reasons(find_groups(model, run, images=2))
    # what the stem makes goes into `a` and on: no score of it is complete
    assert 'no gradient reaches the input of a.conv1' in found['stem']
    assert 'frozen_stages=-1' in found['a.conv1']
    assert found['b.conv1'] == ''


def test_single_unit():
    class Narrow(Net):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 4)
            self.conv2 = conv(4, 2)

        def forward(self, x):
            x = self.conv1(x)  # halves go in step, so do neighbours
            x = torch.cat([x[:, ::2] + x[:, 1::2], x[:, :2] * x[:, 2:]], 1)
            return self.conv2(x)

    found = reasons(find_groups(Narrow(), run, images=2))
    assert 'only one unit' in found['conv1']


def test_norm_over_all_channels():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 4)
            self.norm = nn.GroupNorm(1, 4)
            self.conv2 = conv(4, 2)

        def forward(self, x):
            return self.conv2(self.norm(self.conv1(x)))

    found = reasons(find_groups(Normed(), run, images=2))
    assert 'GroupNorm of one group in norm' in found['conv1']


def test_no_layer_to_prune():
    class Single(Net):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x):
            return self.conv(x)

    groups = find_groups(Single(), run, images=2)
    assert all(g.frozen for g in groups)


def test_ignore():
    groups = find_groups(Residual(), run, images=2)
    found = reasons(restrict_groups(groups, ignore=['a.*', 'stem']))
    assert found == {
        'stem': "ignored by the pattern 'a.*'",  # a.conv2 makes it too
        'a.conv1': "ignored by the pattern 'a.*'",
        'b.conv1': '',
        'head': 'reaches an output of the network',
    }


def test_ignore_that_matches_nothing():
    groups = find_groups(Chain(), run, images=2)
    with pytest.raises(ValueError, match=r"ignore='layer1\.\*'"):
        restrict_groups(groups, ignore=['conv1', 'layer1.*'])


def test_internal_scope():
    groups = find_groups(InvertedResidual(), run, images=2)
    found = reasons(restrict_groups(groups, scope='internal'))
    assert found['expand'] == ''
    assert "scope='internal'" in found['stem']
    assert restrict_groups(groups) == groups


def test_stages_are_told():
    told = []
    groups = find_groups(Chain(), run, images=2, tell=told.append)
    assert told == [
        'following channels through the network',
        'telling which rows belong to which image',
        f'proving {len(groups)} channel groups',
    ]
