"""Copies of networks."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmgfp.utils.copies import shared_copy, whole_copy


class Keeps(nn.Module):
    """Keeps containers of its own, some of them empty, some twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.second.other_name = self.first
        self.cache, self.seen, self.names = {}, set(), ['first']
        self.same_cache = self.cache
        self.ordered = OrderedDict()

    def forward(self, x):
        self.cache['x'] = x
        self.seen.add(len(x))
        return self.second(self.first(x))


@pytest.mark.parametrize('copied', [whole_copy, shared_copy])
def test_copies_are_as_those_of_deepcopy(copied):
    model = Keeps()
    found, expected = copied(model), copy.deepcopy(model)
    ours = {name: vars(m) for name, m in found.named_modules()}
    theirs = {name: vars(m) for name, m in expected.named_modules()}
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].keys() == values.keys()
        assert all(type(ours[name][k]) is type(values[k]) for k in values)
    assert found.same_cache is found.cache
    assert found.second.other_name is found.first


@pytest.mark.parametrize('copied', [whole_copy, shared_copy])
def test_what_a_copy_does_stays_in_it(copied):
    model = Keeps()
    before = copy.deepcopy(model.state_dict())
    found = copied(model)
    found.second.register_forward_hook(lambda *args: None)
    found(torch.rand(2, 3, 4, 4))
    assert not model.cache and not model.seen and found.cache and found.seen
    assert not model.second._forward_hooks
    after = model.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())


def test_parameters_of_copies():
    model = Keeps()
    shared, whole = shared_copy(model), whole_copy(model)
    for ours, of_shared, of_whole in zip(
        model.parameters(), shared.parameters(), whole.parameters()
    ):
        assert of_shared is not ours
        assert of_shared.data_ptr() == ours.data_ptr() != of_whole.data_ptr()
    assert shared.second.running_mean is not model.second.running_mean
