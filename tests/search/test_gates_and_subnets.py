"""Gated == slim, subnet == slim, and cost == that of the recounted network."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from nets import NETS, Net, run
from oracles import outputs, worst_difference
from stack import derivatives
from torch import nn

from mmgfp import find_groups
from mmgfp.cost.model import CostModel, count_cost, record_calls
from mmgfp.cost.polynomial import Cost
from mmgfp.groups import ChannelGroup, Member, Tap, UnitSpace
from mmgfp.search.gates import Gates, gated_groups
from mmgfp.search.subnet import Subnet, best_units, first_units
from mmgfp.slimming.positions import axis_sizes, kept_positions
from mmgfp.slimming.surgery import cut_model
from mmgfp.utils.trees import tree_leaves

# nothing can be pruned, or what is read is changed in place
NAMES = sorted(NETS.keys() - {'NeverCalled', 'UnknownOperation'})


@cache
def groups_of(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    torch.manual_seed(0)
    model: Net = NETS[name]().eval()
    found = find_groups(model, run, images=2)
    return model, [group for group in found if not group.frozen]


class Case:
    """A network, some units that go, and the slim network."""

    def __init__(self, name: str) -> None:
        model, groups = groups_of(name)
        if not groups:
            pytest.skip('nothing can be pruned')
        self.model, self.units = copy.deepcopy(model), UnitSpace(groups)
        rng = np.random.default_rng(0)
        self.gone = [
            np.sort(rng.permutation(size)[: max(1, size // 3)])
            for size in self.units.sizes
        ]
        self.slim = copy.deepcopy(model)
        sizes = axis_sizes(model, groups)
        cut_model(self.slim, kept_positions(groups, self.gone, sizes))
        self.left = self.units.sizes - [len(units) for units in self.gone]


@pytest.mark.parametrize('name', NAMES)
def test_gated_is_slim(name):
    case = Case(name)
    values = np.ones(len(case.units))
    for part, units in zip(case.units.split(values), case.gone):
        part[units] = 0
    gates = torch.tensor(values, requires_grad=True)
    attached = Gates(case.model, case.units, lambda: gates)
    found = [t for t in tree_leaves(run(case.model)) if torch.is_tensor(t)]
    expected = outputs(case.slim, run)
    assert worst_difference(expected, [t.detach() for t in found]) < 1e-4
    if name not in ('InPlace',):  # cannot be trained either
        with derivatives():
            sum(t.sum() for t in found if t.requires_grad).backward()
        assert gates.grad is not None and gates.grad.any()
    attached.detach()
    full = groups_of(name)[0]
    assert worst_difference(outputs(full, run), outputs(case.model, run)) == 0


@pytest.mark.parametrize('name', NAMES)
def test_subnets_are_slim_networks(name):
    case = Case(name)
    subnet = Subnet(case.model, case.units, case.gone).eval()
    batch = type(case.model).batch()
    found = [t for t in tree_leaves(subnet(batch)) if torch.is_tensor(t)]
    expected = outputs(case.slim, run)
    assert worst_difference(expected, [t.detach() for t in found]) < 1e-5
    if name not in ('InPlace',):
        with derivatives():
            sum(t.sum() for t in found if t.requires_grad).backward()
        grads = [p.grad for p in case.model.parameters()]
        assert any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize('name', NAMES)
def test_cost_is_that_of_the_recounted_network(name):
    case = Case(name)
    batch = type(case.model).batch()

    def calls(model: nn.Module):
        return record_calls(model, lambda: model(batch), len(batch))

    cost = Cost(
        CostModel(case.model, case.units.groups, calls(case.model)),
        case.units.sizes,
    )
    left = torch.tensor(case.left).double().requires_grad_()
    batched = cost(
        torch.stack([torch.tensor(case.units.sizes), left.detach()])
    )
    found = cost(left)
    recounted = count_cost(case.slim, calls(case.slim))['']
    full = count_cost(case.model, calls(case.model))['']
    for metric, value in recounted.items():
        assert float(found[metric]) == pytest.approx(value, rel=1e-9)
        assert batched[metric].tolist() == pytest.approx(
            [full[metric], value], rel=1e-9
        )
        constant, linear, pairs = cost.quadratic(metric)
        again = constant + linear @ left + left @ pairs @ left
        assert float(again) == pytest.approx(value, rel=1e-9)
        (slope,) = torch.autograd.grad(found[metric], left, retain_graph=True)
        expected = linear + (pairs + pairs.T) @ left
        torch.testing.assert_close(slope, expected)


def test_density_counts_what_is_not_zero():
    case = Case('Chain')
    batch = type(case.model).batch()
    calls = record_calls(case.model, lambda: case.model(batch), len(batch))
    model = CostModel(case.model, case.units.groups, calls)
    cost = Cost(model, case.units.sizes)
    widths = torch.tensor(case.units.sizes)
    dense = cost(widths)
    shares = torch.tensor([0.25, 1.0]).double()
    sparse = cost(widths.expand(2, -1), {'conv2.weight': shares})
    weight = case.model.conv2.weight
    positions = calls.positions['conv2.weight']
    for metric, each in (('params', 1), ('flops', positions)):
        less = 0.75 * weight.numel() * each
        assert sparse[metric].tolist() == pytest.approx(
            [float(dense[metric]) - less, float(dense[metric])]
        )
    assert sparse['acts'].tolist() == [float(dense['acts'])] * 2
    with pytest.raises(ValueError, match=r"density of 'conv9\.weight'"):
        cost(widths, {'conv9.weight': shares})
    with pytest.raises(ValueError, match=r"metric='latency'.*flops, params"):
        cost.quadratic('latency')


def test_which_units_go():
    units = UnitSpace(groups_of('Chain')[1])
    assert units.sizes.tolist() == [8, 6]
    first = first_units(units, [5, 6])
    assert [part.tolist() for part in first] == [[5, 6, 7], []]
    scores = np.array([3, 1, 2, 0, 5, 5, 5, 5, *range(6)], float)
    best = best_units(units, [5, 2], scores)
    assert [part.tolist() for part in best] == [[1, 2, 3], [0, 1, 2, 3]]
    for width in (0, 9):
        with pytest.raises(ValueError, match=f'width={width} .* 1 to 8'):
            first_units(units, [width, 1])


def test_gates_of_another_shape_are_refused():
    case = Case('Chain')
    Gates(case.model, case.units, lambda: torch.ones(3))
    with pytest.raises(ValueError, match=r'shape \(3,\); expected \(14,\)'):
        run(case.model)


class _Standardized(nn.Conv2d):
    """Subtracts the mean of each filter from it."""

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(source, weight, self.bias)


@pytest.mark.parametrize('kind', [nn.Conv2d, _Standardized, 'parametrized'])
def test_gates_multiply_what_layers_compute(kind):
    torch.manual_seed(0)
    reads = nn.Conv2d if kind == 'parametrized' else kind
    model = nn.Sequential(nn.Conv2d(3, 4, 1), reads(4, 5, 3))
    if kind == 'parametrized':
        if not hasattr(nn.utils.parametrizations, 'weight_norm'):
            pytest.skip('PyTorch before 2.1 has no such parametrization')
        nn.utils.parametrizations.weight_norm(model[1])
    tap = Tap('1', 1, '1.weight', 1, np.arange(4), np.arange(4))
    member = Member('0.weight', 0, np.arange(4)[:, None], 'producer')
    units = UnitSpace([ChannelGroup('0', 4, (member,), (tap,))])
    values = torch.tensor([1.0, 0.5, 0.0, 2.0], requires_grad=True)
    batch = torch.randn(2, 3, 6, 6)
    features = model[0](batch)
    expected = model[1](features * values[:, None, None])
    (slope,) = torch.autograd.grad(expected.square().sum(), values)
    gates = Gates(model, units, lambda: values)
    found = model(batch)
    torch.testing.assert_close(found, expected)
    (again,) = torch.autograd.grad(found.square().sum(), values)
    torch.testing.assert_close(again, slope)
    gates.detach()
    torch.testing.assert_close(model(batch), model[1](features))


def test_gates_of_single_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    tap = Tap('1', 2, '1.weight', 1, np.arange(4), np.arange(4))
    member = Member('0.weight', 0, np.arange(4)[:, None], 'producer')
    units = UnitSpace([ChannelGroup('0', 4, (member,), (tap,))])
    values = torch.rand(2, 4)
    batch = torch.randn(2, 7, 3)
    expected = model[1](model[0](batch) * values[:, None])
    Gates(model, units, lambda: values)
    torch.testing.assert_close(model(batch), expected)
    with pytest.raises(ValueError, match='gates of 2 images at 1'):
        model(torch.randn(3, 7, 3))


def test_a_failing_layer_gets_its_weight_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    tap = Tap('1', 1, '1.weight', 1, np.arange(4), np.arange(4))
    member = Member('0.weight', 0, np.arange(4)[:, None], 'producer')
    units = UnitSpace([ChannelGroup('0', 4, (member,), (tap,))])
    weight = model[1].weight
    Gates(model, units, lambda: torch.ones(4))
    with pytest.raises(RuntimeError):
        model[1](torch.ones(2, 7))
    model[1](torch.ones(2, 4))  # until then with PyTorch 2.0
    assert model[1].weight is weight


def test_grouped_layers_pass_gates_on():
    """A batch norm behind a depthwise layer would undo its gates."""
    case = Case('InvertedResidual')
    ones = torch.ones(len(case.units))
    Gates(case.model, case.units, lambda: ones, grouped=False)
    grouped = [
        module
        for module in case.model.modules()
        if getattr(module, 'groups', 1) > 1
    ]
    assert grouped
    assert all(not module._forward_pre_hooks for module in grouped)
    names = {group.name for group in case.units.groups}
    assert gated_groups(case.units, grouped=False) == names
