"""Slicing while training against a network that only masks.

The oracle keeps every layer at full size. A channel that was removed is
masked in the weights of those that consume it: zero after every step, its
gradient zero before. It finds its own scores with explicit masks of one entry
per image and channel, and its own choice by trying every channel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from pruning import images_of, pruner_of, sums
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, softplus

from mmgfp import Pruner
from mmgfp.cost.model import record_calls
from mmgfp.criteria.base import Criterion
from mmgfp.criteria.fisher import Fisher
from mmgfp.criteria.mask_gradients import MaskGradients
from mmgfp.criteria.weights import Weights
from mmgfp.search.limits import Floor
from mmgfp.tracing.finder import find_groups

SIDE = 6
UNITS = {'stem': 6, 'c1': 8, 'c3': 4}
WIDTH = {'stem': 1, 'c1': 1, 'c3': 3}  # c3 feeds a grouped convolution

# (tensor, axis) by what goes along it with each unit
CONSUMERS = {
    'stem': [('c1.weight', 1), ('c3.weight', 1)],
    'c1': [('dw.weight', 0), ('c2.weight', 1)],
    'c3': [('grouped.weight', 0), ('c4.weight', 1)],
}
PRODUCERS = {
    'stem': ['stem', 'n0', 'c2'],
    'c1': ['c1', 'n1', 'dw'],
    'c3': ['c3', 'grouped'],
}


class Net(nn.Module):
    """Residual, depthwise and grouped; batch norm in training mode."""

    masks: dict[str, Tensor] | None = None

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.n0 = nn.BatchNorm2d(6)
        self.c1 = nn.Conv2d(6, 8, 3, padding=1)
        self.n1 = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c2 = nn.Conv2d(8, 6, 1)
        self.c3 = nn.Conv2d(6, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.c4 = nn.Conv2d(12, 4, 1)

    def m(self, group: str, x: Tensor) -> Tensor:
        if self.masks is None:
            return x
        mask = self.masks[group].repeat_interleave(WIDTH[group], 1)
        return x * mask[:, :, None, None]

    def forward(self, x):
        x = relu(self.n0(self.stem(x)))
        y = relu(self.n1(self.c1(self.m('stem', x))))
        y = self.c2(self.m('c1', self.dw(self.m('c1', y))))
        x = relu(x + y)
        x = relu(self.c3(self.m('stem', x)))
        x = relu(self.grouped(self.m('c3', x)))
        return self.c4(self.m('c3', x)).mean((2, 3))


def cost(metric: str, s: int, c: int, g: int) -> int:
    """By hand, for s, c and g units alive."""
    w = 3 * g
    acts = s + c + c + s + w + w + 4
    if metric == 'acts':
        return acts * SIDE**2
    weights = [3 * s * 9, s * c * 9, c * 9, c * s, s * w * 9, w * 27, w * 4]
    return sum(weights) * SIDE**2


class MaskingOracle:
    """The full-size network, its optimiser, and what is dead in it."""

    def __init__(self, model: Net, optimizer: Callable, clip: float | None):
        self.model = model
        self.average = copy.deepcopy(model)
        self.optimizer = optimizer(model.parameters())
        self.clip = clip
        self.alive = {g: list(range(n)) for g, n in UNITS.items()}
        self.reset()

    def reset(self) -> None:
        self.scores = {g: torch.zeros(n).double() for g, n in UNITS.items()}

    def step(self, images: Tensor, labels: Tensor) -> float:
        self.model.masks = {
            g: torch.ones(len(images), n).double().requires_grad_()
            for g, n in UNITS.items()
        }
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(images), labels)
        loss.backward()
        for group, mask in self.model.masks.items():
            self.scores[group] += (mask.grad * len(images)).square().sum(0)
        self.model.masks = None
        self.zero_removed(lambda p: p.grad)
        norm = clip(self.model, self.clip)
        self.optimizer.step()
        self.zero_removed(lambda p: p.data)
        return norm

    def zero_removed(self, part: Callable[[nn.Parameter], Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for group, members in CONSUMERS.items():
            for tensor, axis in members:
                part(parameters[tensor]).index_fill_(
                    axis, self.positions(group, removed=True), 0
                )

    def positions(self, group: str, removed: bool = False) -> Tensor:
        units = set(self.alive[group])
        if removed:
            units = set(range(UNITS[group])) - units
        width = WIDTH[group]
        return torch.tensor(
            [u * width + k for u in sorted(units) for k in range(width)],
            dtype=torch.long,
        )

    def prune(self, normalize_by: str) -> tuple[str, int]:
        """Remove the unit with the least score over what it saves."""
        sizes = {g: len(units) for g, units in self.alive.items()}
        options = []
        for i, (group, units) in enumerate(self.alive.items()):
            saved = 1
            if normalize_by != 'none':
                fewer = {**sizes, group: sizes[group] - 1}
                saved = cost(normalize_by, *sizes.values()) - cost(
                    normalize_by, *fewer.values()
                )
            if len(units) > 1:
                options += [
                    (float(self.scores[group][u]) / saved, i, u, group)
                    for u in units
                ]
        *_, unit, group = min(options)
        self.alive[group].remove(unit)
        self.reset()
        self.zero_removed(lambda p: p.data)
        return group, unit

    def slim(self, model: nn.Module) -> dict[str, Tensor]:
        """What is alive of every tensor of a full-size model."""
        tensors = model.state_dict()
        for group, members in CONSUMERS.items():
            for name, axis in members:
                if name not in ('dw.weight', 'grouped.weight'):
                    kept = self.positions(group)
                    tensors[name] = tensors[name].index_select(axis, kept)
            for layer in PRODUCERS[group]:
                for name in list(tensors):
                    if name.startswith(f'{layer}.') and tensors[name].dim():
                        kept = self.positions(group)
                        tensors[name] = tensors[name].index_select(0, kept)
        return tensors


def clip(model: nn.Module, most: float | None) -> float:
    if most is None:
        return 0.0
    return float(nn.utils.clip_grad_norm_(model.parameters(), most))


def follow(average: nn.Module, model: nn.Module) -> None:
    """One step of an exponential moving average."""
    with torch.no_grad():
        for a, b in zip(average.parameters(), model.parameters(), strict=True):
            a.mul_(0.9).add_(b, alpha=0.1)


def make_pruner(model: Net, **kwargs) -> Pruner:
    images = torch.randn(2, 3, SIDE, SIDE).double()
    groups = find_groups(model, lambda m: m(images), images=2)
    model.eval()
    calls = record_calls(model, lambda: model(images), images=2)
    model.train()
    return pruner_of(model, groups, calls, **kwargs)


def make_model() -> Net:
    torch.manual_seed(0)
    return Net().double()


OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True
    ),
    'adam': lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2),
    'adamw': lambda p: torch.optim.AdamW(
        p, 1e-3, weight_decay=1e-1, amsgrad=True
    ),
}


@pytest.mark.parametrize('cut_to', [1, 3, 0])
@pytest.mark.parametrize(
    'optimizer, most, normalize_by',
    [
        ('sgd', None, 'acts'),
        ('sgd', 0.5, 'flops'),
        ('adam', 0.5, 'none'),
        ('adamw', None, 'flops'),
    ],
)
def test_slicing_follows_the_masked_trajectory(
    optimizer, most, normalize_by, cut_to
):
    """Whenever channels are cut out, and not only masked."""
    model = make_model()
    oracle = MaskingOracle(
        copy.deepcopy(model), OPTIMIZERS[optimizer], clip=most
    )
    average = copy.deepcopy(model)
    pruner = make_pruner(model, normalize_by=normalize_by, cut_to=cut_to)
    pruner.attach()
    sliced = OPTIMIZERS[optimizer](model.parameters())
    generator = torch.Generator().manual_seed(1)
    for iteration in range(1, 31):
        images = torch.randn(5, 3, SIDE, SIDE, generator=generator).double()
        labels = torch.randint(4, (5,), generator=generator)
        norm = oracle.step(images, labels)
        follow(oracle.average, oracle.model)

        sliced.zero_grad()
        cross_entropy(model(images), labels).backward()
        assert pruner.criterion.end_batch()
        assert clip(model, most) == pytest.approx(norm, rel=1e-9)
        sliced.step()
        follow(average, model)
        if iteration % 3 == 0:
            group, unit = oracle.prune(normalize_by)
            left = alive(pruner, group)
            (removal,) = pruner.prune(
                lambda n: n == 1, [sliced], copies=[average]
            )
            assert removal.group == group
            assert removal.channels == WIDTH[group]
            assert left - alive(pruner, group) == {unit}
            sizes = [len(model.stem.weight), len(model.c1.weight)]
            if cut_to == 0:
                assert sizes == [6, 8]
            else:
                kept = [len(alive(pruner, g)) for g in ('stem', 'c1')]
                most_there = [-(-n // cut_to) * cut_to for n in kept]
                assert sizes == [*map(min, most_there, (6, 8))]

    assert pruner.cut([sliced], [average]) == (cut_to != 1)
    assert not bool(pruner.net.masks.unmasked())
    for ours, theirs in ((model, oracle.model), (average, oracle.average)):
        expected = oracle.slim(theirs)
        assert ours.state_dict().keys() == expected.keys()
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(
                tensor, expected[name], rtol=1e-7, atol=1e-10, msg=name
            )


def alive(pruner: Pruner, group: str) -> set[int]:
    """Units of the original network that its first producer still has."""
    axis = pruner.net.structure().axes.get((f'{group}.weight', 0))
    kept = range(UNITS[group] * WIDTH[group]) if axis is None else axis.keep
    return {int(k) // WIDTH[group] for k in kept}


def train_a_little(pruner: Pruner, model: nn.Module) -> None:
    images = torch.randn(4, 3, SIDE, SIDE).double()
    cross_entropy(model(images), torch.arange(4)).backward()
    assert pruner.criterion.end_batch()


def test_scores_are_reset_after_each_step():
    model = make_model()
    pruner = make_pruner(model)
    pruner.attach()
    train_a_little(pruner, model)
    assert any(f.any() for f in sums(pruner))
    pruner.prune(lambda n: n == 1)
    assert not any(f.any() for f in sums(pruner))
    # also if nothing was to be removed
    train_a_little(pruner, model)
    assert pruner.prune(lambda n: True) == []
    assert not any(f.any() for f in sums(pruner))


def test_cost_is_counted_by_hand():
    model = make_model()
    pruner = make_pruner(model)
    pruner.attach()
    sizes = dict(UNITS)
    for _ in range(12):
        for metric in ('flops', 'acts'):
            assert pruner.net.cost()[metric] == cost(metric, *sizes.values())
            assert pruner.net.ratio(metric) == cost(
                metric, *sizes.values()
            ) / cost(metric, *UNITS.values())
        parameters = sum(p.numel() for p in model.parameters())
        assert pruner.net.cost()['params'] == parameters
        train_a_little(pruner, model)
        (removal,) = pruner.prune(lambda n: n == 1)
        sizes[removal.group] -= 1


def test_prunes_until_nothing_is_left_above_the_floor():
    model = make_model()
    pruner = make_pruner(model, floor=Floor(min_channels=2))
    reachable = pruner.limits.reachable()
    # two channels, and one unit of three
    for metric in ('flops', 'acts'):
        least = cost(metric, 2, 2, 1) / cost(metric, *UNITS.values())
        assert reachable[metric] == pytest.approx(least)
    pruner.attach()
    train_a_little(pruner, model)
    removals = pruner.prune(lambda n: False)
    assert len(removals) == 4 + 6 + 3
    assert pruner.net.ratio('flops') == pytest.approx(reachable['flops'])
    assert pruner.prune(lambda n: False) == []
    assert model.stem.weight.shape[0] == 2
    assert model.dw.groups == 2
    assert model.grouped.groups == 1
    train_a_little(pruner, model)  # it still runs


def test_pruning_goes_on_from_a_structure():
    """Two halves of pruning with a new pruner equal one that went on."""
    torch.manual_seed(3)
    batches = [torch.randn(4, 3, SIDE, SIDE).double() for _ in range(6)]

    def prune(pruner: Pruner, batches: list[Tensor]) -> list:
        removals = []
        for images in batches:
            outputs = pruner.net.model(images)
            cross_entropy(outputs, torch.arange(4)).backward()
            pruner.criterion.end_batch()
            removals += pruner.prune(lambda n: n == 2)
        return removals

    whole = make_pruner(make_model(), floor=Floor(min_ratio=0.25))
    whole.attach()
    expected = prune(whole, batches)

    first = make_pruner(make_model(), floor=Floor(min_ratio=0.25))
    first.attach()
    removals = prune(first, batches[:3])
    structure = first.net.structure()

    model = make_model()
    groups = find_groups(model, lambda m: m(batches[0]), images=4)
    structure.apply(model)
    model.load_state_dict(first.net.model.state_dict())
    calls = record_calls(model, lambda: model(batches[0][:1]))
    second = pruner_of(
        model, groups, calls, floor=Floor(min_ratio=0.25), structure=structure
    )
    second.attach()
    assert second.net.cost() == first.net.cost()
    assert second.net.ratio('acts') == first.net.ratio('acts')
    removals += prune(second, batches[3:])
    assert removals == expected
    assert second.net.structure().to_dict() == whole.net.structure().to_dict()


def test_state_is_taken_over():
    model = make_model()
    pruner = make_pruner(model)
    pruner.attach()
    train_a_little(pruner, model)
    state = copy.deepcopy(pruner.state_dict())
    other = make_pruner(make_model())
    other.load_state_dict(state)
    for a, b in zip(sums(pruner), sums(other), strict=True):
        assert (a == b).all()
    assert np.concatenate(sums(other)).any()


def test_state_of_another_network_is_refused():
    pruner = make_pruner(make_model())
    state = pruner.state_dict()
    state['sums']['c1'] = state['sums']['c1'][:-1]
    with pytest.raises(ValueError, match=r'7 units .* c1, expected 8'):
        pruner.load_state_dict(state)
    del state['sums']['c1']
    with pytest.raises(ValueError, match=r'no units .* c1, expected 8'):
        pruner.load_state_dict(state)


def test_structure_that_splits_a_unit_is_refused():
    pruner = make_pruner(make_model())
    pruner.attach()
    train_a_little(pruner, pruner.net.model)
    while alive(pruner, 'c3') == {0, 1, 2, 3}:
        pruner.prune(lambda n: n == 1)
        train_a_little(pruner, pruner.net.model)
    structure = pruner.net.structure()
    key = 'c3.weight', 0
    axis = structure.axes[key]
    half = dict(structure.axes)
    half[key] = type(axis)(axis.size, axis.keep[1:])
    damaged = type(structure)(half, cost_before=structure.cost_before)
    model = make_model()
    groups = find_groups(
        model, lambda m: m(torch.ones(2, 3, SIDE, SIDE).double()), images=2
    )
    with pytest.raises(ValueError, match=r'a part of .* the group c3'):
        pruner_of(
            model,
            groups,
            record_calls(model, lambda: None),
            structure=damaged,
        )


def test_without_a_prunable_group():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    groups = find_groups(model, lambda m: m(torch.ones(2, 3, 8, 8)), images=2)
    with pytest.raises(ValueError, match='no channel group can be pruned'):
        pruner_of(model, groups, record_calls(model, lambda: None))


def test_masks_are_not_copied():
    """EMA hooks and the like copy networks that are masked."""
    model = make_model()
    pruner = make_pruner(model, cut_to=0)
    pruner.attach()
    train_a_little(pruner, model)
    pruner.prune(lambda n: n == 3)
    assert bool(pruner.net.masks.unmasked())
    copied = copy.deepcopy(model)
    assert all(not p._backward_hooks for p in copied.parameters())
    assert any(p._backward_hooks for p in model.parameters())
    pruner.cut()
    assert all(not p._backward_hooks for p in model.parameters())


# -- groups without scores ---------------------------------------------------


class Branches(nn.Module):
    """Two heads on a trunk; what its first two layers make is added."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)
        self.b1, self.b2 = nn.Conv2d(6, 7, 3), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        x = softplus(self.stem(x))
        x = softplus(x + self.block(x))
        return self.a2(softplus(self.a1(x))), self.b2(softplus(self.b1(x)))


def branches(criterion: Criterion | None = None, **kwargs) -> Pruner:
    torch.manual_seed(0)
    model = Branches().double()
    groups = find_groups(model, lambda m: m(IMAGES), images=len(IMAGES))
    calls = record_calls(model, lambda: model(IMAGES), len(IMAGES))
    pruner = pruner_of(
        *(model, groups, calls, 'none'), criterion=criterion, **kwargs
    )
    assert [g.name for g in pruner.net.units.groups] == ['stem', 'a1', 'b1']
    pruner.attach()
    return pruner


IMAGES = torch.randn(
    5, 3, 6, 6, generator=torch.Generator().manual_seed(2)
).double()


def learn(
    pruner: Pruner,
    weight: Sequence[float] | None = (1.0,) * 5,
    scale: float = 1.0,
) -> Tensor:
    """A batch whose images have these weights in the second head's loss."""
    a, b = pruner.net.model(IMAGES)
    loss = a.square().sum((1, 2, 3))
    if weight is not None:
        weights = torch.tensor(weight).double()
        loss = loss + b.square().sum((1, 2, 3)) * weights
    (loss.mean() * scale).backward()
    return pruner.criterion.end_batch(scale)


def freeze_all(model: Branches) -> None:
    model.stem.requires_grad_(False)
    model.block.requires_grad_(False)


def freeze_part(model: Branches) -> None:
    """The sum of both layers still has a gradient, the first one none."""
    model.stem.requires_grad_(False)


@pytest.mark.parametrize('cut_to', [1, 0])
@pytest.mark.parametrize(
    'freeze, weight, expected',
    [
        (None, None, ['b1']),
        (None, [0.0] * 5, ['b1']),
        (freeze_all, [1.0] * 5, ['stem']),
        (freeze_part, [1.0] * 5, ['stem']),
        (freeze_all, None, ['stem', 'b1']),
        (None, [0.0, 0.0, 1.0, 0.0, 0.0], []),
    ],
    ids=['none', 'zeros', 'frozen', 'frozen in part', 'both', 'one image'],
)
def test_groups_without_gradients_are_left_out(
    freeze, weight, expected, cut_to
):
    pruner = branches(cut_to=cut_to)
    sizes = {g.name: g.size for g in pruner.net.units.groups}
    assert pruner.unscored() == list(sizes)  # nothing has been seen yet
    if freeze is not None:
        freeze(pruner.net.model)
    assert learn(pruner, weight)
    assert pruner.unscored() == expected
    removals = pruner.prune(lambda n: False)
    left = dict(sizes)
    for removal in removals:
        left[removal.group] -= removal.channels
    assert left == {n: sizes[n] if n in expected else 1 for n in sizes}
    least = pruner.limits.reachable(expected)
    assert pruner.net.ratios() == pytest.approx(least)
    # nothing is known until the next batch
    assert pruner.unscored() == list(sizes)
    assert pruner.prune(lambda n: False) == []


def test_what_a_group_left_out_has_accumulated_stays():
    """Also where other groups were cut, and there is nothing new."""
    pruner = branches()
    learn(pruner)
    before = sums(pruner)
    assert all(scores.all() for scores in before)
    freeze_all(pruner.net.model)
    learn(pruner)
    assert pruner.unscored() == ['stem']
    for _ in range(2):
        assert pruner.prune(lambda n: n == 2)
        stem, *others = sums(pruner)
        assert (stem == before[0]).all()
        assert not any(scores.any() for scores in others)
        learn(pruner)
        assert pruner.unscored() == ['stem']
    pruner.net.model.requires_grad_(True)
    pruner.prune(lambda n: True)
    learn(pruner)
    assert pruner.unscored() == []
    assert (sums(pruner)[0] > before[0]).all()


def test_images_that_contributed_are_counted():
    pruner = branches()
    learn(pruner, [0.0, 1.0, 0.0, 1.0, 0.0])
    learn(pruner, [0.0, 1.0, 0.0, 0.0, 0.0])
    assert images_of(pruner) == dict(stem=10, a1=10, b1=3)
    pruner.criterion.all_reduce(
        lambda sums: sums.mul_(2)
    )  # another process has as many
    assert images_of(pruner) == dict(stem=20, a1=20, b1=6)
    pruner.prune(lambda n: n == 1)
    assert set(images_of(pruner).values()) == {0}


def test_one_process_with_gradients_is_enough():
    with_b, without_b = branches(), branches()
    learn(with_b)
    learn(without_b, None)
    assert without_b.unscored() == ['b1']
    parts: list[Tensor] = []
    with_b.criterion.all_reduce(lambda mine: parts.append(mine.clone()))
    without_b.criterion.all_reduce(lambda mine: mine.add_(parts[0]))
    assert without_b.unscored() == []
    # and one that lacks a part is too much
    frozen = branches()
    freeze_part(frozen.net.model)
    learn(frozen)
    frozen.criterion.all_reduce(lambda mine: mine.add_(parts[0]))
    assert frozen.unscored() == ['stem']


def test_dead_channels_go_first():
    pruner = branches()
    with torch.no_grad():
        pruner.net.model.a1.bias[3] = -1e3
    learn(pruner)
    assert sums(pruner)[1].tolist().count(0) == 1
    (removal,) = pruner.prune(lambda n: n == 1)
    assert removal.group == 'a1'
    assert pruner.net.structure().keep['a1.weight', 0].tolist() == [0, 1, 2, 4]


def test_left_out_in_the_record():
    pruner = branches()
    learn(pruner)
    pruner.prune(lambda n: n == 3, iteration=1)
    first = pruner.net.structure().scores
    learn(pruner, None)
    pruner.prune(lambda n: n == 1, iteration=2)
    second = pruner.net.structure().scores
    assert (second.step, second.iteration) == (2, 2)
    assert [g.left_out for g in second.groups.values()] == [False, False, True]
    known = second.groups['b1'].scores
    assert (known == first.groups['b1'].scores).all() and known.any()
    learn(pruner)
    pruner.prune(lambda n: n == 1, iteration=3)
    third = pruner.net.structure().scores
    assert not any(g.left_out for g in third.groups.values())


def test_counts_are_taken_over():
    pruner = branches()
    learn(pruner, [0.0, 1.0, 0.0, 1.0, 0.0])
    freeze_part(pruner.net.model)
    learn(pruner, None)
    state = copy.deepcopy(pruner.state_dict())
    other = branches()
    other.load_state_dict(state)
    assert images_of(other) == images_of(pruner) == dict(stem=10, a1=10, b1=2)
    assert other.unscored() == pruner.unscored() == ['stem']
    for a, b in zip(sums(pruner), sums(other), strict=True):
        assert a.any() and (a == b).all()


def test_states_without_counts():
    """As earlier versions saved them."""
    pruner = branches()
    learn(pruner, None)
    state = dict(fisher=pruner.state_dict()['sums'])
    other = branches()
    other.load_state_dict(state)
    assert other.unscored() == ['b1']


# -- other criteria ----------------------------------------------------------


class Absolute(MaskGradients):
    def of_batch(self, gradients):
        return gradients.abs().sum(0)


class Signs(MaskGradients):
    """What is not finite does not show in the scores."""

    def of_batch(self, gradients):
        return (gradients > 0).double().sum(0)


class Sizes(Weights):
    def of_group(self, group, tensors, numbers):
        return np.arange(group.size, 0, -1.0)


@pytest.mark.parametrize('criterion', [Absolute, Signs])
def test_criteria_cannot_forget_scale_and_bad_batches(criterion):
    plain, scaled = branches(criterion()), branches(criterion())
    assert learn(plain)
    assert learn(scaled, scale=4096.0)
    assert not learn(scaled, [float('nan')] * 5)
    a, b = scaled.net.model(IMAGES)
    (a.square().mean() + b.square().mean()).backward()
    assert not scaled.criterion.end_batch(valid=torch.tensor(False))
    for found, expected in zip(sums(scaled), sums(plain), strict=True):
        assert expected.any()
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    gradients = torch.randn(5, 18).double()
    assert plain.criterion.of_batch(gradients).shape == (18,)


def test_criteria_that_look_at_weights():
    """They need no gradients, and nothing is observed for them."""
    pruner = branches(Sizes())
    assert not any(m._forward_pre_hooks for m in pruner.net.model.modules())
    assert pruner.unscored() == []
    assert pruner.criterion.end_batch() and not pruner.criterion.end_batch(
        valid=torch.tensor(False)
    )
    assert len(pruner.prune(lambda n: n == 4)) == 4
    assert [g.size for g in pruner.net.units.groups] == [4, 4, 6]


def test_share_of_scores_that_outlives_a_step():
    pruner = branches(Fisher(decay=0.5))
    learn(pruner)
    before = sums(pruner)
    pruner.prune(lambda n: True)
    for found, scores in zip(sums(pruner), before, strict=True):
        assert (found == 0.5 * scores).all()
    learn(pruner, None)
    kept = sums(pruner)[2].copy()
    assert pruner.unscored() == ['b1']
    pruner.prune(lambda n: True)
    assert (sums(pruner)[2] == kept).all()
