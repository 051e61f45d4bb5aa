"""Groups with ratios of their own, and groups compared within their kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from toy import pruning_hook, train

from mmgfp import Pruner
from mmgfp.criteria.weights import Weights
from mmgfp.search.limits import Floor
from mmgfp.search.prunable import Prunable
from mmgfp.search.quotas import Quotas, group_kinds, group_ratios
from mmgfp.tracing.finder import find_groups, restrict_groups

NONE = np.array([np.nan, np.nan, np.nan])
POSSIBLE = np.array([True, True, True])


class Numbered(Weights):
    """Units of the first groups are worth least, whatever their kind."""

    def of_group(self, group, tensors, numbers):
        return numbers + 1000.0 * (len(group.name) + ord(group.name[-1]))


class Net(nn.Module):
    """Two convolutions of one kind, then two linear layers of another."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 10, 3, padding=1)
        self.conv1 = nn.Conv2d(10, 20, 3, padding=1)
        self.fc0 = nn.Linear(20, 40)
        self.fc1 = nn.Linear(40, 30)
        self.fc2 = nn.Linear(30, 2)

    def forward(self, x):
        x = self.conv1(self.conv0(x).relu()).relu().mean((2, 3))
        return self.fc2(self.fc1(self.fc0(x).relu()).relu())


def run(model):
    return model(torch.linspace(-1, 1, 2 * 3 * 36).view(2, 3, 6, 6))


def pruner(**settings) -> Pruner:
    torch.manual_seed(0)
    net = Prunable.find(Net(), run, 2)
    return Pruner(net, Numbered(), 'none', **settings)


def left(pruner: Pruner) -> dict[str, int]:
    return dict(
        zip(
            [group.name for group in pruner.net.units.groups],
            map(int, pruner.net.units.sizes),
        )
    )


# -- by hand ---------------------------------------------------------------


def test_a_kind_waits_until_others_have_lost_as_much():
    quotas = Quotas([0, 0, 1], [10, 10, 10], NONE)
    for now, compared in [
        ([10, 10, 10], [True, True, False]),  # a tie: the first
        ([9, 10, 10], [False, False, True]),  # 19 / 20 < 10 / 10
        ([9, 10, 9], [True, True, False]),  # 19 / 20 > 9 / 10
        ([8, 10, 9], [True, True, False]),  # 18 / 20 = 9 / 10
    ]:
        found = quotas.next(np.array(now), POSSIBLE, 0.0)
        assert found.tolist() == compared


def test_kinds_that_can_lose_nothing_stop_no_other():
    quotas = Quotas([0, 0, 1], [10, 10, 10], NONE)
    possible = np.array([False, False, True])
    assert quotas.next(np.array([10, 10, 3]), possible, 0.0).tolist() == [
        *(False, False, True),
    ]
    nothing = np.array([False, False, False])
    assert not quotas.next(np.array([1, 1, 1]), nothing, 0.0).any()


def test_ratios_follow_the_way_to_the_target():
    quotas = Quotas([0, 0, 0], [10, 10, 10], np.array([0.5, np.nan, 0.9]))
    for now, progress, compared in [
        ([10, 10, 10], 0.0, [False, True, False]),  # only what is free
        ([10, 10, 10], 0.2, [True, False, False]),  # 9 and 9.8 are due
        ([9, 10, 10], 0.2, [False, False, True]),
        ([9, 10, 9], 0.2, [False, True, False]),
        ([9, 10, 9], 1.0, [True, False, False]),
        ([5, 10, 9], 1.0, [False, True, False]),
    ]:
        found = quotas.next(np.array(now), POSSIBLE, progress)
        assert found.tolist() == compared


# -- kinds -----------------------------------------------------------------


def test_the_same_block_in_other_stages_is_of_the_same_kind():
    model = resnet18().eval()
    groups = find_groups(model, lambda m: m(torch.ones(2, 3, 64, 64)), 2)
    kinds = group_kinds(model, [group for group in groups if not group.frozen])
    inner = {name: kind for name, kind in kinds.items() if 'conv1' in name}
    inner.pop('conv1', None)
    assert len(inner) == 8 and len(set(inner.values())) == 1
    # the stem's has a block less coupled to it than those with a shortcut of
    # their own, and the last is read by a linear layer
    trunks = set(kinds) - set(inner)
    assert len({kinds[name] for name in trunks}) == 3
    assert not {kinds[name] for name in trunks} & set(inner.values())


def test_all_kinds_keep_the_same_share():
    free, isomorphic = pruner(), pruner(isomorphic=True)
    for each in (free, isomorphic):
        each.prune(lambda n: n == 50)
    # names decide: convolutions last, or the linear layers last
    assert left(free) == {'conv0': 10, 'conv1': 20, 'fc0': 1, 'fc1': 19}
    found = left(isomorphic)
    convs = (found['conv0'] + found['conv1']) / 30
    linear = (found['fc0'] + found['fc1']) / 70
    # of 100 units half are left, so half of each kind
    assert convs == linear == 0.5


def test_one_kind_is_no_restriction():
    """Then the choice is the one that all groups compete for."""

    def prune(isomorphic):
        model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(4)))
        net = Prunable.find(
            copy.deepcopy(model), lambda m: m(torch.ones(2, 4, 3, 3)), 2
        )
        made = Pruner(net, Numbered(), 'flops', isomorphic=isomorphic)
        return made.prune(lambda n: n == 7)

    assert prune(True) == prune(False)


# -- ratios ----------------------------------------------------------------


def test_ratios_hold_exactly_and_cost_nothing_else():
    made = pruner(ratios={'conv1': 0.75, 'fc0': 0.55})
    made.prune(lambda n: made.net.ratio('flops') <= 0.8)
    assert left(made) == {'conv0': 10, 'conv1': 15, 'fc0': 22, 'fc1': 30}
    # the least important units went
    assert made.net.units.numbers[1].tolist() == list(range(5, 20))


def test_others_go_on_to_the_target():
    made = pruner(ratios={'fc0': 0.5})
    made.prune(lambda n: made.net.ratio('flops') <= 0.5)
    assert left(made)['fc0'] == 20
    assert 0.4 < made.net.ratio('flops') <= 0.5


def test_ratios_alone():
    """Without a target they are all that is done."""
    made = pruner(ratios={'fc1': 0.1}, floor=Floor(min_ratio=0.3))
    made.prune(lambda n: True)
    assert left(made) == {'conv0': 10, 'conv1': 20, 'fc0': 40, 'fc1': 3}


def test_ratios_with_multiples_of_channels():
    made = pruner(ratios={'fc1': 0.5}, floor=Floor(round_to=4))
    made.prune(lambda n: True)
    assert left(made)['fc1'] == 16  # 15 is no multiple


def test_reachable_keeps_ratios():
    made = pruner(ratios={'conv1': 0.75})
    expected = made.limits.reachable()['flops']
    made.prune(lambda n: False)
    assert left(made) == {'conv0': 1, 'conv1': 15, 'fc0': 1, 'fc1': 1}
    assert made.net.ratio('flops') == pytest.approx(expected)


def groups():
    torch.manual_seed(0)
    return find_groups(Net(), run, 2)


def test_patterns():
    assert group_ratios(groups(), {'fc*': 0.5, 'conv1': 0.25}) == {
        **{'fc0': 0.5, 'fc1': 0.5},
        'conv1': 0.25,
    }


@pytest.mark.parametrize(
    ('ratios', 'message'),
    [
        ({'layer*': 0.5}, r"'layer\*': 0.5.*matches no layer"),
        ({'conv1': 0.5}, r"can be pruned \(ignored by the pattern 'conv1'\)"),
        ({'fc*': 0.5, 'fc0': 0.4}, r"'fc\*' and 'fc0' match layers of .*fc0"),
    ],
)
def test_impossible_patterns(ratios, message):
    found = restrict_groups(groups(), ignore=['conv1'])
    with pytest.raises(ValueError, match=message):
        group_ratios(found, ratios)


# -- from a config ---------------------------------------------------------


def test_ratios_of_a_run(tmp_path):
    runner = train(tmp_path, dict(ratios={'conv1': 0.5}))
    hook = pruning_hook(runner)
    assert len(runner.model.conv1.weight) == 6
    assert hook.pruner.net.ratio('flops') <= 0.5
    # it kept pace: not all at once, and not only in the end
    history = hook.pruner.net.history
    went = {step for step in history.groups['conv1'].removed if step >= 0}
    assert len(went) > 1


def test_isomorphic_run(tmp_path):
    runner = train(tmp_path, dict(isomorphic=True))
    # a convolution and a residual stream, each a kind of its own
    stem, conv1 = len(runner.model.stem.weight), len(runner.model.conv1.weight)
    assert abs(stem / 8 - conv1 / 12) <= 2 / 8


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(ratios=0.5), 'ratios=0.5: expected ratios to keep by pattern'),
        (dict(ratios={'conv1': 1.5}), r"ratios\['conv1'\]=1.5"),
        (dict(ratios={1: 0.5}), 'expected ratios to keep by pattern'),
        (dict(isomorphic='yes'), "isomorphic='yes'.*True or False"),
        (dict(ratios={'head': 0.5}), 'matches no layer whose outputs'),
        (dict(ratios={'stem': 0.9, 'conv1': 0.9}), 'ratios=.*remains'),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, settings)
