"""Pruned weights stay zero, as if masks were multiplied after each step."""

from __future__ import annotations

import copy
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mmgfp.slimming.element_masks import (
    Density,
    WeightMasks,
    pruned_weights,
)

INPUTS = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4

OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.1
    ),
    'adam': lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    'adamw': lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(5, 4)),
    )


def random_masks(model: nn.Module, share: float = 0.5) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(p.shape, generator=generator) < share
        for name, p in model.named_parameters()
        if p.dim() > 1
    }


def step(model, optimizer, by_hand=None, clip=False) -> None:
    """One step; ``by_hand`` are masks that are multiplied."""
    cross_entropy(model(INPUTS), LABELS).backward()
    parameters = dict(model.named_parameters())
    for name, gone in (by_hand or {}).items():
        parameters[name].grad *= ~gone
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for name, gone in (by_hand or {}).items():
            parameters[name] *= ~gone


@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_training_equals_masks_multiplied_by_hand(kind, clip):
    model, expected = make_model(), make_model()
    optimizer, other = (
        OPTIMIZERS[kind](m.parameters()) for m in (model, expected)
    )
    for _ in range(2):  # momentum of weights that go
        step(model, optimizer, clip=clip)
        step(expected, other, clip=clip)
    gone = random_masks(model)
    masks = WeightMasks(model)
    masks.put(gone, [optimizer])
    for name, parameter in expected.named_parameters():
        if name in gone:
            parameter.data *= ~gone[name]
            for value in other.state[parameter].values():
                if value.shape == parameter.shape:
                    value *= ~gone[name]
    for _ in range(5):
        step(model, optimizer, clip=clip)
        step(expected, other, gone, clip=clip)
    for name, value in model.state_dict().items():
        assert value.equal(expected.state_dict()[name]), name
    for name, lost in gone.items():
        parameter = model.get_parameter(name)
        assert not parameter[lost].any()
        assert parameter[~lost].all()
        for value in optimizer.state[parameter].values():
            if value.shape == parameter.shape:
                assert not value[lost].any()


def test_gradients_and_copies_are_masked_at_once():
    model = make_model()
    average = copy.deepcopy(model)
    cross_entropy(model(INPUTS), LABELS).backward()
    gone = random_masks(model)
    masks = WeightMasks(model)
    masks.put(gone, copies=[average])
    for name, lost in gone.items():
        assert not model.get_parameter(name).grad[lost].any()
        assert not average.get_parameter(name)[lost].any()
        assert average.get_parameter(name)[~lost].all()
    model.zero_grad()
    (float('inf') * model(INPUTS).sum()).backward()
    for name, lost in gone.items():
        assert not model.get_parameter(name).grad[lost].any()


def test_what_writes_weights_in_its_own_way_revives_none():
    class Noise(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group['params']:
                    parameter.data.add_(1)
                    # a state of rows and columns, as of Adafactor
                    self.state[parameter]['row'] = parameter.data.flatten()[:1]

    model = make_model()
    optimizer = Noise(model.parameters(), lr=0.1)
    step(model, optimizer)
    gone = random_masks(model)
    masks = WeightMasks(model)
    masks.put(gone, [optimizer])
    step(model, optimizer)
    for name, lost in gone.items():
        assert not model.get_parameter(name)[lost].any()
        assert model.get_parameter(name)[~lost].all()


def test_lifted_weights_train_again_and_zeros_stay():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gone = random_masks(model)
    masks = WeightMasks(model)
    masks.put(gone, [optimizer])
    masks.lift()
    assert masks.density() == {}
    weight = model[0].weight
    assert not weight[gone['0.weight']].any()
    step(model, optimizer)
    assert weight[gone['0.weight']].any()


def test_copies_and_pickles_of_the_network_have_no_hooks():
    model = make_model()
    WeightMasks(model).put(random_masks(model))
    copied = copy.deepcopy(model)
    pickled = ForkingPickler.loads(ForkingPickler.dumps(model))
    for other in (copied, pickled):
        cross_entropy(other(INPUTS), LABELS).backward()
        assert other[0].weight.grad.all()


def test_density_and_what_is_pruned_are_known_from_zeros():
    model = make_model()
    gone = random_masks(model)
    whole = torch.zeros(4, 5, dtype=torch.bool)
    masks = WeightMasks(model)
    masks.put({**gone, '7.weight': whole})
    density = masks.density()
    assert density == {
        name: Density(lost.numel(), int((~lost).sum()))
        for name, lost in gone.items()
        if name != '7.weight'
    }
    again = make_model()
    again.load_state_dict(model.state_dict())
    found = pruned_weights(again, density)
    assert found.keys() == density.keys()
    for name, lost in found.items():
        assert lost.equal(gone[name])


def test_a_weight_that_is_zero_by_chance_is_not_pruned():
    model = make_model()
    gone = random_masks(model)
    masks = WeightMasks(model)
    masks.put(gone)
    first = int((~gone['3.weight']).flatten().nonzero()[0])
    assert masks.zeros_that_stay() == {}
    model[3].weight.data.view(-1)[first] = 0
    stays = masks.zeros_that_stay()
    assert stays['3.weight'].tolist() == [first]
    assert len(stays) == 1
    found = pruned_weights(model, masks.density(), stays)
    assert found['3.weight'].equal(gone['3.weight'])
    every = pruned_weights(model, masks.density())
    assert int(every['3.weight'].sum()) == int(gone['3.weight'].sum()) + 1


@pytest.mark.parametrize(
    'pruned, words',
    [
        ({'9.weight': torch.zeros(2, dtype=torch.bool)}, '9.weight'),
        ({'7.weight': torch.zeros(5, 4, dtype=torch.bool)}, '(4, 5)'),
        ({'1.running_mean': torch.zeros(6, dtype=torch.bool)}, 'none'),
    ],
)
def test_masks_that_do_not_fit(pruned, words):
    model = make_model()
    with pytest.raises(ValueError, match='does not fit') as caught:
        WeightMasks(model).put(pruned)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    'density, words',
    [
        ({'9.weight': Density(4, 2)}, 'got none'),
        ({'7.weight': Density(4, 2)}, 'of 4 weights'),
        ({'7.weight': Density(20, 12)}, 'has 0 zeros, expected 8'),
    ],
)
def test_weights_that_do_not_fit_the_record(density, words):
    with pytest.raises(ValueError) as caught:
        pruned_weights(make_model(), density)
    assert words in str(caught.value)
