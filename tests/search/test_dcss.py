"""Widths learnt by gradients: the formulas, the course, and what comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from width_search import staircase

from mmgfp import Prunable
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.search.budget import Budget
from mmgfp.search.dcss import DCSS
from mmgfp.search.knapsack import Knapsack
from mmgfp.search.limits import Floor
from mmgfp.search.subnet import best_units

SHAPE = (2, 3, 10, 10)


def chain(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), (*widths, 5)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def run(model: nn.Module):
    torch.manual_seed(1)
    return model(torch.randn(SHAPE))


def find(model: nn.Module, **settings) -> Prunable:
    return Prunable.find(model.eval(), run, SHAPE[0], **settings)


def scores(net: Prunable) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(size) for size in net.units.sizes]


def started(net: Prunable, ratio: float = 0.5, **settings) -> DCSS:
    search = DCSS(**settings)
    search.start(net, Budget('flops', ratio), scores(net))
    return search


def put(search: DCSS, *probabilities: list[float]) -> None:
    """Set the probabilities of the candidates."""
    search._probabilities = torch.tensor(probabilities).double()


def test_tail_masses_of_known_probabilities():
    """Widths 8, 16, 24, 32 of 32 with p = .1, .2, .3, .4."""
    net = find(chain(32, 32))
    search = started(net, candidates=4)
    assert [c.tolist() for c in search._table.choices] == [[8, 16, 24, 32]] * 2
    put(search, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    order = np.argsort(-scores(net)[0], kind='stable')
    masses = search._tail_masses()[:32][order]
    expected = torch.tensor([1, 0.9, 0.7, 0.4]).double().repeat_interleave(8)
    torch.testing.assert_close(masses, expected)
    assert float(masses.sum()) == pytest.approx(24)  # the expected width


def test_expected_cost_of_known_probabilities():
    """A 3x3 convolution between two such groups: 518 400 of 921 600."""
    net = find(chain(32, 32))
    search = started(net, candidates=4)
    put(search, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    ends = 9 * 100 * (3 + 5)
    assert 32 * 32 * 9 * 100 == 921_600
    full, expected = 921_600 + ends * 32, 518_400 + ends * 24
    assert search.expected_cost() == pytest.approx(expected / full)


def test_all_candidates_at_once_are_their_mean():
    """sum_k p_k conv(x[:n_k], W[:, :n_k]), the best units first."""
    net = find(chain(8))
    search = started(net, candidates=4)
    mixture = [0.1, 0.2, 0.3, 0.4]
    put(search, mixture)
    model = net.model
    with torch.no_grad():
        features = run(model[:2])
        order = np.argsort(-scores(net)[0], kind='stable')
        expected = sum(
            p * conv2d(features[:, at], model[2].weight[:, at], padding=1)
            for p, at in zip(mixture, (order[: 2 * k] for k in range(1, 5)))
        )
        expected = expected + model[2].bias[:, None, None]
        search.attach(10)
        search._values = search._gates_now()
        torch.testing.assert_close(run(model), expected)
        search.detach()


def test_one_hot_is_the_slim_network():
    net = find(chain(8, 12))
    net.model.double()
    search = started(net, candidates=4)
    put(search, [0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    search.attach(10)
    search._values = search._tail_masses()

    def double(model: nn.Module):
        torch.manual_seed(1)
        return model(torch.randn(SHAPE).double())

    gated = double(net.model).detach()
    search.detach()
    widths = [4, 6]
    net.masks.mask(best_units(net.units, widths, np.concatenate(scores(net))))
    assert net.units.sizes.tolist() == widths
    torch.testing.assert_close(gated, double(net.model).detach())


def test_raising_the_least_width_lowers_the_cost():
    search = started(find(chain(8, 12)), candidates=4)
    put(search, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    before = search.expected_cost()
    search._probabilities[0, 0] += 0.2
    search._probabilities[0, 3] -= 0.2
    assert search.expected_cost() < before


def test_the_network_starts_whole():
    search = started(find(chain(8, 12)))
    assert search._values.tolist() == [1.0] * 20


def learnt(net: Prunable, ratio: float, steps: int = 200, **settings) -> DCSS:
    """A search whose first group matters ten times as much as others."""
    search = started(net, ratio, **settings)
    search.attach(steps)
    matters = np.where(net.units.group_of == 0, 1.0, 0.1)

    def gradient(values: torch.Tensor) -> torch.Tensor:
        # the loss falls with every gate
        return -torch.from_numpy(matters).to(values)

    for _ in range(steps):
        search.step(gradient)
    search.detach()
    return search


@pytest.mark.parametrize('ratio', [0.7, 0.5, 0.2])
def test_the_target_is_met_where_it_matters_least(ratio):
    net = find(chain(16, 16, 16))
    search = learnt(net, ratio)
    widths = search.widths()
    budget = Budget('flops', ratio)
    assert budget.meets(net, widths)
    # no group can have one more step
    for g, choices in enumerate(search._table.choices):
        wider = widths.copy()
        at = list(choices).index(widths[g])
        if at + 1 < len(choices):
            wider[g] = choices[at + 1]
            assert not budget.meets(net, wider)
    assert widths[1] < widths[0] >= 15
    steps = [step for step, _ in search.course]
    assert steps == sorted(steps) and steps[-1] == 200
    assert all(0 < r <= 1 for _, ratios in search.course for r in ratios)


def test_the_cost_follows_its_goal():
    net = find(chain(32, 32, 32))
    search = learnt(net, 0.4, steps=400)
    assert search.expected_cost() == pytest.approx(0.4, rel=1e-3)
    chosen = [
        choices[k]
        for choices, k in zip(search._table.choices, search._nearest())
    ]
    assert Budget('flops', 0.4).cost(net, chosen) == pytest.approx(
        0.4, abs=0.06
    )


def test_smaller_outputs_are_no_reason_to_prune():
    """Slopes that scale a group down are left out; others stay."""
    search = started(find(chain(4, 4)), candidates=4)
    put(search, [0, 0, 0, 1], [0, 0, 0.5, 0.5])
    search._values = search._gates_now()
    gates = search._values.double()
    assert sorted(gates.tolist()) == [0.5, *[1] * 7]
    # in sum, the first group gains from smaller gates, the second loses
    slope = torch.cat([torch.tensor([3.0, 1, -1, 1]).double(), -gates[4:]])
    found = search._without_scale(slope)
    assert found[:4].tolist() == [2, 0, -2, 0]  # less 4 / 4
    assert found[4:].equal(slope[4:])
    down = search._without_scale(-slope)
    assert down[:4].equal(-slope[:4])
    torch.testing.assert_close(down[4:], gates[4:] - 3.25 / 3.5)
    assert float((down * gates)[4:].sum()) == pytest.approx(0)


def test_masses_settle_before_the_cut():
    """At the end only units between two candidates are in between."""
    net = find(chain(32, 32, 32))
    search = learnt(net, 0.4, steps=400)
    # what it would be without settling: several candidates of a group
    assert ((search._probabilities > 0.01).sum(1) > 2).any()
    masses = net.units.split(search._tail_masses().numpy())
    expected = search.expected_widths().tolist()
    for mass, mean, choices, score in zip(
        masses, expected, search._table.choices, scores(net)
    ):
        assert mass.sum() == pytest.approx(mean)
        inner = mass[np.argsort(-score, kind='stable')]
        lower = choices[choices <= mean + 1e-9].max(initial=0)
        upper = choices[choices >= mean - 1e-9].min()
        np.testing.assert_allclose(inner[:lower], 1)
        np.testing.assert_allclose(inner[upper:], 0)


@pytest.mark.parametrize(
    'done, share', [(0, 0), (70, 0), (77.5, 0.5), (90, 1)]
)
def test_when_masses_settle(done, share):
    search = started(find(chain(32, 32)), candidates=4, warmup=0)
    put(search, [0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0])
    search._done, search._steps = done, 100
    first, second = search.probabilities().tolist()
    # the mean of 8 and 32 is half-way between 16 and 24
    half = share / 2
    assert first == pytest.approx([0.5 - half, half, half, 0.5 - half])
    assert second == pytest.approx([0, 0, 1, 0])
    assert search.expected_widths().tolist() == pytest.approx([20, 24])


def test_widths_of_real_gradients():
    """Two groups of the same shape, one of which is noise to the other."""
    torch.manual_seed(0)
    model = chain(12, 12)
    with torch.no_grad():  # only the first four units of group 0 are read
        model[2].weight[:, 4:] *= 1e-3
    net = find(model)
    search = DCSS(candidates=6)
    reads = [
        np.abs(model[2 * g + 2].weight.detach().numpy()).sum((0, 2, 3))
        for g in (0, 1)
    ]
    search.start(net, Budget('flops', 0.5), reads)
    images = torch.randn(8, 3, 10, 10)
    wanted = model(images).detach()
    search.attach(150)

    def gradient(values: torch.Tensor) -> torch.Tensor:
        loss = (model(images) - wanted).square().mean()
        (slope,) = torch.autograd.grad(loss, values)
        return slope

    for _ in range(150):
        search.step(gradient)
    search.detach()
    first, second = search.widths()
    assert first <= 6 < second


def test_resumed_is_uninterrupted():
    def at(search: DCSS) -> torch.Tensor:
        return search._probabilities

    def gradient(values: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.arange(len(values))).to(values)

    whole = started(find(chain(8, 12)))
    whole.attach(40)
    for _ in range(40):
        whole.step(gradient)
    first = started(find(chain(8, 12)))
    first.attach(40)
    for _ in range(17):
        first.step(gradient)
    again = started(find(chain(8, 12)))
    again.attach(40)
    again.load_state_dict(first.state_dict())
    assert again._values.equal(first._values)
    for _ in range(23):
        again.step(gradient)
    assert at(again).equal(at(whole))
    assert again.course == whole.course
    other = started(find(chain(8, 12, 4)))
    other.attach(40)
    with pytest.raises(ValueError, match=r'search of \(2, 10\) candidates'):
        other.load_state_dict(first.state_dict())


def test_gradients_that_are_not_finite_teach_nothing():
    search = started(find(chain(8)), warmup=0)
    search.attach(10)
    before = search._probabilities.clone()
    search.step(lambda values: values * math.nan)
    assert search._probabilities.equal(before)


def test_gradients_that_are_never_finite_end_the_search():
    search = started(find(chain(8)), warmup=0)
    search.attach(100)

    def gradient(values: torch.Tensor) -> torch.Tensor:
        return values * (1 if search._done % 20 == 5 else math.nan)

    for _ in range(100):  # at most 19 in a row
        search.step(gradient)
    assert search._learnt == 5
    again = started(find(chain(8)), warmup=0)
    again.attach(100)
    again.load_state_dict(search.state_dict())
    with pytest.raises(ValueError, match='of 20 search batches in a row'):
        for _ in range(6):  # 14 before
            again.step(lambda values: values * math.nan)


def test_a_search_without_a_finite_gradient_has_no_widths():
    search = started(find(chain(8)), warmup=0)
    search.attach(5)
    for _ in range(5):
        search.step(lambda values: values * math.nan)
    with pytest.raises(ValueError, match='of 5 search batches is finite'):
        search.widths()


def test_groups_that_cannot_be_gated_keep_their_width(monkeypatch):
    net = find(chain(8, 12))
    first, second = (group.name for group in net.units.groups)
    monkeypatch.setattr(
        'mmgfp.search.dcss.gated_groups', lambda *_, **__: frozenset([second])
    )
    search = learnt(net, 0.6)
    assert search.ungated == [first]
    assert search.widths()[0] == 8 and search.widths()[1] < 12


def test_what_only_grouped_layers_read_is_gated_behind_them():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
    )
    search = started(find(model))
    assert search.ungated == []  # the layer behind it reads them, too
    assert len(search._table.choices[0]) > 1


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(candidates=1), 'candidates=1: expected a whole number'),
        (dict(cost_weight=0), 'cost_weight=0: expected a number'),
        (dict(warmup=1), 'warmup=1: expected a ratio'),
        (dict(temperature=0), 'temperature=0: expected a number, more than'),
        (dict(temperature='x'), "temperature='x': expected a number"),
        (dict(warmup=True), 'warmup=True: expected a ratio'),
        (dict(cost_weight=math.inf), 'cost_weight=inf: expected a number'),
    ],
)
def test_impossible_arguments(settings, words):
    with pytest.raises(ValueError, match=words):
        DCSS(**settings)


def test_targets_that_cannot_be_met():
    net = find(chain(8, 12))
    search = DCSS()
    with pytest.raises(ValueError, match=r'cannot be reached.* at least 0\.'):
        search.start(net, Budget('flops', 0.01), scores(net))
    with pytest.raises(ValueError, match='cannot be reached'):
        floor = Floor(min_ratio=0.9)
        search.start(net, Budget('flops', 0.5, floor), scores(net))
    # possible with all widths, but not with these candidates
    few = find(chain(64, 64, 64))
    few_scores = scores(few)
    for search, candidates in ((DCSS(), 10), (Knapsack(candidates=4), 4)):
        least = [math.ceil(64 / candidates)] * 3
        ratio = Budget('flops', 0.5).cost(few, least)
        search.start(few, Budget('flops', ratio + 1e-6), few_scores)
        with pytest.raises(ValueError) as error:
            search.start(few, Budget('flops', ratio - 1e-6), few_scores)
        for words in (
            f'candidates={candidates} at least {ratio:.4f} of flops',
            'or more candidates',
        ):
            assert words in str(error.value)
    for group, count in enumerate((6, 10)):
        net.take(group, count)
    net.masks.mask([np.arange(6), np.arange(10)])
    with pytest.raises(ValueError, match='already met'):
        search.start(net, Budget('flops', 0.5), scores(net))


def test_a_cost_weight_that_collapses_the_network():
    with pytest.raises(ValueError, match=r'cost_weight=1000\.0 dominates'):
        learnt(find(chain(8, 12)), 0.5, cost_weight=1e3)
    # where the loss depends on no width, its gradients are zero
    search = started(find(chain(8, 12)), cost_weight=1e-9, warmup=0)
    search.attach(1000)
    with pytest.raises(ValueError, match='cost_weight=1e-09 dominates'):
        for _ in range(1000):
            search.step(torch.zeros_like)
            assert search._probabilities.isfinite().all()


def test_a_larger_cost_weight_makes_cheaper_networks():
    net = find(chain(16, 16, 16))
    costs = [
        learnt(net, 0.5, cost_weight=weight).expected_cost()
        for weight in (0.1, 1.0, 2.0)
    ]
    assert 1 > costs[0] > costs[1] > costs[2] > 0.05


def test_latency_as_the_target():
    """It grows in stairs of four channels, with slopes of zero between."""
    model = chain(16, 16)
    net = find(model, latency=staircase(model))
    budget = Budget('latency', 0.5)
    search = DCSS(candidates=16)
    search.start(net, budget, scores(net))
    search.attach(100)
    matters = torch.where(torch.from_numpy(net.units.group_of) == 0, 1.0, 0.1)
    for _ in range(100):
        search.step(lambda values: -matters.to(values))
    search.detach()
    assert search.expected_cost() == pytest.approx(0.5, rel=1e-3)
    widths = search.widths()
    assert 0.3 < budget.cost(net, widths) <= 0.5
    assert widths[0] > 2 * widths[1]


def test_budget_is_that_of_the_recounted_network():
    net = find(chain(8, 12))
    budget, widths = Budget('flops', 0.5), [5, 3]
    expected = budget.cost(net, widths)
    full = net.cost_before['flops']
    net.masks.mask(best_units(net.units, widths, np.concatenate(scores(net))))
    calls = record_calls(net.model, lambda: run(net.model), SHAPE[0])
    assert count_cost(net.model, calls)['']['flops'] == expected * full


@pytest.mark.parametrize(
    'floor, most, expected',
    [
        (Floor(), 4, [3, 6, 9, 12]),
        (Floor(), 10, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]),
        (Floor(round_to=4), 10, [4, 8, 12]),
        (Floor(round_to=8), 10, [8, 12]),
        (Floor(min_channels=7), 4, [7, 9, 12]),
        (Floor(min_ratio=0.5), None, [6, 7, 8, 9, 10, 11, 12]),
    ],
)
def test_candidate_widths(floor, most, expected):
    net = find(chain(12))
    (found,) = Budget('flops', 0.5, floor).choices(net, most)
    assert found.tolist() == expected
    (kept,) = Budget(
        'flops', 0.5, floor, frozenset([net.units.groups[0].name])
    ).choices(net, most)
    assert kept.tolist() == [12]
