"""Features in common, the programme, and the widths that the paper prints."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import Concat, Residual
from torch import nn
from torch.nn.functional import relu
from width_search import (
    SHAPE,
    Parts,
    all_widths,
    chain,
    find,
    random_scores,
    staircase,
)

from mmgfp import Prunable
from mmgfp.cost.model import record_calls
from mmgfp.cost.polynomial import Cost
from mmgfp.rows import Layout
from mmgfp.search.budget import Budget
from mmgfp.search.features import Features
from mmgfp.search.itpruner import ITPruner, Programme, solve
from mmgfp.search.limits import Floor
from mmgfp.tracing.finder import find_groups

# -- features ----------------------------------------------------------------


def shown(net: Prunable, *batches: torch.Tensor) -> Features:
    features = Features(net.model, net.units)
    with torch.no_grad():
        for batch in batches:
            net.model(batch)
    features.detach()
    return features


def kept_inputs(model, batch, layers) -> list[np.ndarray]:
    """(n, d) what layers read, calls side by side; for each layer."""
    kept = [[] for _ in layers]
    handles = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].flatten(1))
        )
        for layer, seen in zip(layers, kept)
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return [torch.cat(seen, 1).double().numpy() for seen in kept]


def song(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC (Song et al., JMLR 2012)."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    product = (
        np.trace(k @ l)
        + k.sum() * l.sum() / (n - 1) / (n - 2)
        - 2 / (n - 2) * (k @ l).sum()
    )
    return product / n / (n - 3)


def biased(x: np.ndarray, y: np.ndarray) -> float:
    """The paper's nHSIC of one batch."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = (centre @ f @ f.T @ centre for f in (x, y))  # noqa: E741
    return (k * l).sum() / np.linalg.norm(k) / np.linalg.norm(l)


def test_nhsic_of_kept_features():
    net = find(chain(6, 9, 4))
    torch.manual_seed(2)
    batches = [torch.randn(n, *SHAPE[1:]) for n in (5, 9)]
    hsic = np.zeros((3, 3))
    for batch in batches:
        kept = kept_inputs(net.model, batch, '246')
        hsic += len(batch) * np.array(
            [[song(x, y) for x in kept] for y in kept]
        )
    norm = np.sqrt(hsic.diagonal())
    expected = (hsic / norm / norm[:, None]).clip(0)
    found = shown(net, *batches)
    np.testing.assert_allclose(found.nhsic(), expected, atol=1e-5)
    assert found.images == 14


def test_nhsic_of_many_images_is_the_papers():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU()),
        nn.Linear(7, 3),
    )
    net = Prunable.find(model.eval(), lambda m: m(torch.ones(2, 6)), 2)
    batch = torch.randn(400, 6)
    x, y = kept_inputs(model, batch, '24')
    found = shown(net, batch).nhsic()
    assert found[0, 1] == pytest.approx(biased(x, y), abs=0.01)


class Branches(nn.Module):
    """Two see the same image, and one another part of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(5, 4)
        self.b = nn.Linear(5, 4)
        self.c = nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        rotation, _ = torch.linalg.qr(torch.randn(4, 4))
        with torch.no_grad():
            self.b.weight.copy_(3 * rotation @ self.a.weight)

    def forward(self, x):
        left, right = x[:, :5], x[:, 5:]
        parts = self.a(left), self.b(left), self.c(right)
        return [head(part) for head, part in zip(self.heads, parts)]


def branches() -> Prunable:
    model = Branches().eval()
    return Prunable.find(model, lambda m: m(torch.ones(2, 10)), 2)


def test_nhsic_ignores_rotation_and_scale():
    torch.manual_seed(1)
    found = shown(branches(), torch.randn(2000, 10)).nhsic()
    np.testing.assert_allclose(found.diagonal(), 1)
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    assert found[0, 2] < 0.02 and found[1, 2] < 0.02


def test_least_redundant_group_is_the_most_important():
    search = ITPruner(beta=3)
    net = branches()
    search.start(net, Budget('flops', 0.6), random_scores(net))
    torch.manual_seed(1)
    with search.observing(), torch.no_grad():
        net.model(torch.randn(500, 10))
    importance = search.importance()
    # r is 1/2, 1/2, 0 but for the noise
    np.testing.assert_allclose(importance, [np.exp(-1.5)] * 2 + [1], rtol=0.1)
    found = search.widths()
    assert found[2] == 4 and found[:2].sum() < 8


class Levels(nn.Module):
    """A head that runs on two levels, of different sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = relu(self.stem(x))
        levels = x, x[:, :, ::2, ::2]
        return [self.out(relu(self.shared(level))) for level in levels]


def test_shared_heads_have_features_of_all_levels():
    net = find(Levels())
    batch = torch.randn(6, *SHAPE[1:])
    x, y = kept_inputs(net.model, batch, ['shared', 'out'])
    assert y.shape[1] == 8 * (64 + 16)
    expected = song(x, y) / np.sqrt(song(x, x) * song(y, y))
    assert shown(net, batch).nhsic()[0, 1] == pytest.approx(expected, abs=1e-5)


def test_parts_of_what_a_consumer_reads():
    """``both`` reads two groups; ``only`` one of them again."""
    net = find(Concat())
    batch = Concat.batch(6)
    both, only, end = kept_inputs(net.model, batch, ['both', 'only', 'end'])
    both = both.reshape(6, 10, -1)
    kept = {
        'a': np.concatenate([both[:, 6:].reshape(6, -1), only], 1),
        'b': both[:, :6].reshape(6, -1),
        'only': end,
    }
    features = [kept[group.name] for group in net.units.groups]
    hsic = np.array([[song(x, y) for x in features] for y in features])
    norm = np.sqrt(hsic.diagonal())
    np.testing.assert_allclose(
        shown(net, batch).nhsic(),
        (hsic / norm / norm[:, None]).clip(0),
        atol=1e-5,
    )


@pytest.mark.parametrize('order', ['blocks', 'turns', 'rois'])
def test_rows_of_an_image_are_its_features(order):
    model = chain(4, 4)
    features = Features(model, find(model).units)
    features._images = 2
    features._rois = {'extractor': torch.tensor([0, 0, 1, 1])}
    rows = torch.tensor([[1.0, 5], [2, 6], [3, 7], [4, 8]])
    tap = SimpleNamespace(layout=Layout(0, order, 'extractor'), module='m')
    found = features._per_image(rows, tap)
    assert (
        found.tolist()
        == {
            'blocks': [[[1, 2], [5, 6]], [[3, 4], [7, 8]]],
            'turns': [[[1, 3], [5, 7]], [[2, 4], [6, 8]]],
            'rois': [[3, 11], [7, 15]],  # their sums
        }[order]
    )
    with pytest.raises(RuntimeError, match='has 3 rows'):
        features._per_image(rows[:3], tap)
    features.detach()


def test_forwards_of_few_images_are_left_out():
    net = find(chain(6, 9))
    batch = torch.randn(8, *SHAPE[1:])
    whole, rest = shown(net, batch), shown(net, batch, batch[:3])
    np.testing.assert_array_equal(whole.nhsic(), rest.nhsic())
    search = ITPruner()
    search.start(net, Budget('flops', 0.5), random_scores(net))
    with search.observing():
        net.model(batch[:3])
    with pytest.raises(ValueError, match='no forward of at least 4 images'):
        search.widths()


def test_sums_of_processes():
    net = find(chain(6, 9))
    batches = torch.randn(2, 8, *SHAPE[1:])
    both = shown(net, *batches)
    first, second = (shown(net, batch) for batch in batches)
    first.all_reduce(lambda sums: sums.add_(second._sums))
    np.testing.assert_allclose(first.nhsic(), both.nhsic())
    assert first.images == 16


def test_features_that_are_not_finite():
    net = find(chain(6, 9))
    with torch.no_grad():
        net.model[0].weight.fill_(np.inf)
    with pytest.raises(RuntimeError, match='not finite'):
        shown(net, torch.randn(4, *SHAPE[1:]))


def test_features_that_are_all_constant():
    model = chain(8, 8)
    net = find(model)
    search = ITPruner()
    search.start(net, Budget('flops', 0.5), random_scores(net))
    with search.observing():
        model(torch.ones(20, 3, 10, 10))
    with pytest.raises(ValueError, match='the same for all 20 images'):
        search.widths()


def test_groups_without_features_keep_their_width():
    net = find(Parts(8, 8, 8))
    with torch.no_grad():
        net.model.parts[1][0].weight.zero_()  # the same for all images
    search = ITPruner()
    search.start(net, Budget('flops', 0.9), random_scores(net))
    with search.observing():
        net.model(torch.randn(6, *SHAPE[1:]))
    with pytest.warns(UserWarning, match='1 groups have no features'):
        found = search.widths()
    assert search.unseen == [net.units.groups[1].name]
    assert found[1] == 8 and search._budget.meets(net, found)


# -- the programme -----------------------------------------------------------


@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
def test_slope_of_the_cost(metric):
    net = find(Residual())
    budget = Budget(metric, 0.5)
    programme = Programme(net, budget, np.ones(3))
    x = np.random.default_rng(0).uniform(0.2, 1, 3)
    assert programme.cost(x) == pytest.approx(
        float(
            Cost(net.cost_model, net.units.sizes)(
                torch.from_numpy(x * net.units.sizes)
            )[metric]
        )
        / net.cost_before[metric]
    )
    step = 1e-5 * np.eye(3)
    slope = [
        (programme.cost(x + d) - programme.cost(x - d)) / 2e-5 for d in step
    ]
    np.testing.assert_allclose(programme.slope(x), slope, rtol=1e-6)


def test_optimum_of_a_fine_grid():
    net = find(chain(40, 48, 44))
    rng = np.random.default_rng(0)
    axes = [np.linspace(0.05, 1, 39)] * 3
    grid = np.array(list(itertools.product(*axes)))
    for ratio in (0.3, 0.6):
        for _ in range(3):
            importance = rng.uniform(0.2, 1, 3)
            programme = Programme(net, Budget('flops', ratio), importance)
            cost = Cost(net.cost_model, net.units.sizes)(
                torch.from_numpy(grid * net.units.sizes)
            )
            within = cost['flops'].numpy() / net.cost_before['flops'] <= ratio
            best = (grid[within] @ importance).max()
            found = [
                programme.solve(np.array(start), np.full(3, 0.05))
                for start in itertools.product([0.05, 1], repeat=3)
            ]
            assert all(programme.cost(x) <= ratio + 1e-6 for x in found)
            assert max(importance @ x for x in found) >= best - 1e-6


@pytest.mark.parametrize(
    'model', [chain(8, 10, 12), Residual(), Parts(9, 8, 7)]
)
@pytest.mark.parametrize('metric', ['flops', 'params', 'acts'])
def test_widths_of_most_importance(model, metric):
    net = find(model)
    rng = np.random.default_rng(0)
    for ratio in (0.5, 0.7):
        importance = rng.uniform(0.2, 1, 3)
        budget = Budget(metric, ratio)
        found = solve(net, budget, importance, 0)
        assert budget.meets(net, found)
        worth = importance / net.units.sizes
        every = all_widths(net, budget, budget.choices(net))
        # a unit of a few is much of the worth
        assert worth @ found >= 0.95 * (every @ worth).max()


def test_what_every_group_keeps():
    net, budget = find(chain(16, 16, 16)), Budget('flops', 0.4)
    importance = np.array([1, 0.01, 1])
    assert solve(net, budget, importance, 0)[1] <= 4
    floor = Floor(round_to=4, min_channels=8)
    assert solve(net, Budget('flops', 0.4, floor), importance, 0)[1] == 8
    equal = solve(net, budget, importance, 1)
    assert np.ptp(equal) <= 1
    assert solve(net, budget, importance, 0.5)[1] >= equal.min() / 2


def test_fixed_groups():
    net = find(chain(16, 16, 16))
    budget = Budget('flops', 0.6, fixed=frozenset([net.units.groups[1].name]))
    found = solve(net, budget, np.ones(3), 0.5)
    assert found[1] == 16 and budget.meets(net, found)


def test_latency_is_no_polynomial():
    model = chain(16, 16)
    net = find(model, latency=staircase(model))
    with pytest.raises(ValueError, match='one of flops, acts, params'):
        ITPruner().start(net, Budget('latency', 0.5), random_scores(net))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(beta=-1), 'beta=-1'),
        (dict(images=2), 'images=2: expected a whole number, at least 4'),
        (dict(images=1e2), 'images=100'),
        (dict(least=2), 'least=2'),
    ],
)
def test_impossible_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        ITPruner(**settings)


# -- what the paper prints ---------------------------------------------------


def counted(model: nn.Module) -> Prunable:
    """On images of 224x224; the groups are the same on smaller ones."""
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        groups = find_groups(model, lambda m: m(torch.ones(2, 3, 32, 32)), 2)
        calls = record_calls(model, lambda: model(torch.ones(1, 3, 224, 224)))
    return Prunable(model, groups, calls)


def check_cost(net, widths, giga, mega) -> None:
    cost = Cost(net.cost_model, net.units.sizes)(torch.tensor(widths))
    assert float(cost['flops']) / 1e9 == pytest.approx(giga, abs=5.1e-5)
    assert float(cost['params']) / 1e6 == pytest.approx(mega, abs=5.1e-4)


def away_from_the_first(net, widths) -> float:
    """How far they are from what SLSQP finds where nothing is important.

    The greatest difference, as a ratio of the units of a group.
    """
    groups = len(net.units.groups)
    budget = Budget('flops', Budget('flops', 1).cost(net, widths))
    programme = Programme(net, budget, np.zeros(groups))
    first = programme.solve(np.ones(groups), np.zeros(groups))
    return abs(first - widths / net.units.sizes).max()


def test_resnet50_2300m():
    """45.33 % less than 4.0892 G."""
    net = counted(pytest.importorskip('torchvision').models.resnet50())
    widths = [
        *(52, 55, 55, 146, 55, 55, 55, 55),
        *(105, 111, 232, *[111] * 6),
        *(211, 222, 290, *[222] * 10),
        *(423, 442, 1453, *[442] * 4),
    ]
    check_cost(net, net.units.sizes.tolist(), 4.0892, 25.557)
    check_cost(net, widths, 2.2356, 14.711)
    assert away_from_the_first(net, widths) < 0.04


def mobilenet_v1() -> nn.Sequential:
    outputs = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    layers: list[nn.Module] = []

    def add(*args, **kwargs) -> None:
        conv = nn.Conv2d(*args, bias=False, **kwargs)
        norm = nn.BatchNorm2d(conv.out_channels)
        layers.extend([conv, norm, nn.ReLU(inplace=True)])

    add(3, 32, 3, 2, 1)
    for before, after, stride in zip([32, *outputs], outputs, strides):
        add(before, before, 3, stride, 1, groups=before)
        add(before, after, 1)
    return nn.Sequential(
        *(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(1024, 1000),
    )


def test_mobilenet_v1_150m():
    net = counted(mobilenet_v1())
    check_cost(net, net.units.sizes.tolist(), 0.5687, 4.232)
    widths = [23, 42, 63, 67, 132, 134, 275, 194, 202, 202, 194, 277, 522, 687]
    check_cost(net, widths, 0.1486, 1.521)
    assert away_from_the_first(net, widths) < 0.02


def test_mobilenet_v2_150m():
    """Six hidden channels for each that a block reads."""
    net = counted(pytest.importorskip('torchvision').models.mobilenet_v2())
    full = [32, 16, 24, 32, 64, 96, 160, 320, 1280]
    kept = [29, 12, 16, 24, 43, 50, 98, 273, 1280]
    outputs = iter(kept)
    widths = []
    for group in net.units.groups:
        if group.name.endswith('conv.0.0'):  # follows what its block reads
            read = kept[full.index(group.size // 6, 1)]
            widths.append(6 * read)
        else:
            widths.append(next(outputs))
    check_cost(net, widths, 0.1487, 2.370)
