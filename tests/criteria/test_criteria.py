"""What every criterion has to do, and what each one computes.

Scores are compared with loops over images, units and layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from nets import InvertedResidual
from pruning import pruner_of, sums
from torch import Tensor, nn
from toy import make_config, structure_of, train

from mmgfp import Pruner, find_groups
from mmgfp.cost.model import record_calls
from mmgfp.criteria.base import Criterion
from mmgfp.groups import UnitSpace
from mmgfp.registry import CRITERIA, HOOKS
from mmgfp.search.limits import Floor

ALL = sorted(  # without those of other tests
    name
    for name, kind in CRITERIA.module_dict.items()
    if kind.__module__.startswith('mmgfp.')
)
OF_GRADIENTS = ['BatchFisher', 'Fisher', 'Taylor']
EVERY = pytest.mark.parametrize('kind', ALL)
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make(kind: str) -> Criterion:
    return CRITERIA.build(dict(type=kind))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Softplus()),
        *(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.Softplus()),
        nn.Conv2d(5, 2, 1),
    ).eval()
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight)
    return model.double()


def small(
    kind: str, cut_to: int = 1, model: nn.Module | None = None
) -> Pruner:
    model = model or make_model()
    images = IMAGES.double()
    groups = find_groups(model, lambda m: m(images), images=len(images))
    calls = record_calls(model, lambda: model(images), len(images))
    return pruner_of(
        *(model, groups, calls, 'none'), cut_to=cut_to, criterion=make(kind)
    )


def learn(pruner: Pruner, images: Tensor = IMAGES, scale: float = 1.0):
    criterion = pruner.criterion
    calibrates = criterion.when == 'calibration'
    with criterion.observing() if calibrates else nullcontext():
        loss = pruner.net.model(images.double()).square().mean()
        (scale * loss).backward()
        return criterion.end_batch(scale, loss.isfinite())


# -- what all have to do -------------------------------------------------


def test_which_there_are():
    assert {
        *('BNScale', 'BatchFisher', 'FPGM', 'Fisher', 'KFAC', 'L1', 'L2'),
        *('Magnitude', 'Random', 'Taylor'),
    } <= {*ALL}
    for kind in ALL:
        expected = 'training' if kind in OF_GRADIENTS else 'weights'
        if kind == 'KFAC':
            expected = 'calibration'
        assert CRITERIA.get(kind).when == expected


@EVERY
@pytest.mark.parametrize('scale', [4096.0, 0.5])
def test_loss_scale_and_bad_batches_leave_no_trace(kind, scale):
    def scores(scale: float, bad: float) -> np.ndarray:
        pruner = small(kind)
        for images in (IMAGES, bad * IMAGES, IMAGES.flip(1)):
            good = bool(images.isfinite().all())
            assert learn(pruner, images, scale) == good
        assert pruner.unscored() == []
        return np.concatenate(pruner.scores())

    expected = scores(1.0, float('nan'))
    assert expected.any() and np.isfinite(expected).all()
    found = scores(scale, float('inf'))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize('kind', OF_GRADIENTS)
def test_bad_batches_are_seen(kind):
    pruner = small(kind)
    pruner.net.model(float('nan') * IMAGES.double()).sum().backward()
    assert not pruner.criterion.end_batch()
    assert not np.concatenate(sums(pruner)).any()


@EVERY
def test_masked_and_cut_networks_lose_the_same(kind):
    def run(cut_to: int) -> list:
        pruner = small(kind, cut_to)
        steps = []
        for _ in range(3):
            learn(pruner)
            steps.append(pruner.prune(lambda n: n == 2))
        pruner.cut()
        return [*steps, pruner.net.structure().to_dict()['tensors']]

    expected = run(1)
    assert sum(len(removals) for removals in expected[:3]) == 6
    assert run(0) == run(4) == expected


@EVERY
def test_several_processes_score_as_one(kind):
    """Each process has half of the batch; the norms use running means."""
    whole = small(kind)
    # batches of other images are other batches
    parts = IMAGES.split(2) if kind == 'BatchFisher' else [IMAGES]
    for images in parts:
        learn(whole, images)
    first, second = small(kind), small(kind)
    # the loss of each process is a mean over its own images
    for pruner, images in ((first, IMAGES[:2]), (second, IMAGES[2:])):
        learn(pruner, images)
    sent: list[Tensor] = []
    first.criterion.all_reduce(lambda sums: sent.append(sums.clone()))
    assert bool(sent) == (first.criterion.when != 'weights')
    received = iter(sent)
    second.criterion.all_reduce(lambda sums: sums.add_(next(received)))
    for found, expected in zip(second.scores(), whole.scores(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@EVERY
def test_another_network_begins_anew(kind):
    """As where one runner trains twice."""
    pruner = small(kind)
    learn(pruner)
    pruner.prune(lambda n: n == 2)
    other = small(kind)
    of_weights = pruner.criterion.when == 'weights'
    expected = other.scores() if of_weights else None
    again = Pruner(other.net, pruner.criterion, 'none')
    hooks = [m._forward_pre_hooks for m in pruner.net.model.modules()]
    assert not any(hooks)
    if expected is None:
        assert again.unscored() == [g.name for g in other.net.units.groups]
        if kind in OF_GRADIENTS:
            assert not np.concatenate(sums(again)).any()
    else:
        for found, scores in zip(again.scores(), expected, strict=True):
            np.testing.assert_array_equal(found, scores)


@EVERY
def test_states_are_taken_over(kind):
    pruner = small(kind)
    learn(pruner)
    state = copy.deepcopy(pruner.state_dict())
    other = small(kind)
    other.load_state_dict(state)
    if kind == 'KFAC':  # a pass runs from its beginning
        assert state == {'criterion': kind}
        learn(other)
    for found, expected in zip(other.scores(), pruner.scores(), strict=True):
        np.testing.assert_array_equal(found, expected)
    stranger = small('Taylor' if kind == 'Fisher' else 'Fisher')
    with pytest.raises(ValueError, match=f'by the criterion {kind}'):
        stranger.load_state_dict(state)


@EVERY
def test_interrupted_is_uninterrupted(kind, tmp_path):
    """In a runner, with accumulated gradients, masked in between."""

    def config(folder: str, **settings) -> Config:
        return make_config(
            tmp_path / folder,
            dict(criterion=dict(type=kind), cut_to=4, interval=2),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
                accumulative_counts=2,
            ),
            **settings,
        )

    whole = Runner.from_cfg(config('whole'))
    whole.train()
    interrupted = config('part')
    interrupted.custom_hooks += [dict(type='Stop', iteration=9)]
    with pytest.raises(KeyboardInterrupt):
        Runner.from_cfg(interrupted).train()
    resumed = Runner.from_cfg(config('part', resume=True))
    resumed.train()
    assert structure_of(whole) == structure_of(resumed)
    assert structure_of(whole)
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values()
    ):
        assert torch.equal(a, b)


# -- what each computes --------------------------------------------------


def per_image(model: nn.Sequential) -> Tensor:
    """Gradients of each image's loss with respect to masks, (N, 11)."""
    rows = []
    for image in IMAGES.double():
        masks = [torch.ones(n).double().requires_grad_() for n in (6, 5)]
        x = model[:3](image[None]) * masks[0][:, None, None]
        x = model[3:6](x) * masks[1][:, None, None]
        model[6](x).square().mean().backward()
        rows.append(torch.cat([mask.grad for mask in masks]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('Fisher', lambda g: g.square().sum(0)),
        ('BatchFisher', lambda g: g.sum(0).square()),
        ('Taylor', lambda g: g.sum(0).abs()),
    ],
)
def test_of_gradients(kind, expected: Callable):
    pruner = small(kind)
    learn(pruner)
    found = np.concatenate(pruner.scores())
    pruner.detach()
    gradients = per_image(pruner.net.model)
    np.testing.assert_allclose(found, expected(gradients).numpy(), rtol=1e-9)


def slices_of(group, unit, tensors, roles) -> list[Tensor]:
    """Weights that each layer loses with a unit."""
    found = []
    for member in group.members:
        if member.role in roles and member.tensor.endswith('weight'):
            weight = tensors[member.tensor].detach()
            parts = [
                weight.select(member.axis, int(i)).reshape(-1)
                for i in member.index[unit]
            ]
            found.append(torch.cat(parts))
    return found


LAYERS = ('producer', 'consumer', 'grouped', 'affine')


@pytest.mark.parametrize(
    ('kind', 'roles', 'measure'),
    [
        ('L1', LAYERS, lambda w: w.abs().sum()),
        ('L2', LAYERS, lambda w: w.square().sum()),
        ('BNScale', ('affine',), lambda w: w.abs().sum()),
    ],
)
@pytest.mark.parametrize('net', [InvertedResidual, None])
def test_of_weights(kind, roles, measure, net):
    model = net().double() if net else make_model()
    images = (net.batch() if net else IMAGES).double()
    groups = find_groups(model, lambda m: m(images), images=len(images))
    calls = record_calls(model, lambda: model(images), len(images))
    pruner = pruner_of(model, groups, calls, criterion=make(kind))
    tensors = dict(model.named_parameters())
    compared = 0
    for group, found in zip(
        pruner.net.units.groups, pruner.scores(), strict=True
    ):
        expected = []
        for unit in range(group.size):
            layers = slices_of(group, unit, tensors, roles)
            sizes = [float(measure(layer)) for layer in layers]
            expected.append(np.mean(sizes) if sizes else np.nan)
        np.testing.assert_allclose(found, expected / np.mean(expected))
        compared += not np.isnan(expected).any()
        assert (group.name in pruner.unscored()) == np.isnan(found).all()
    assert compared


def test_distances_of_filters():
    pruner = small('FPGM')
    weight = pruner.net.model[0].weight.detach().flatten(1)
    expected = np.array(
        [sum(float((a - b).norm()) for b in weight) for a in weight]
    )
    found, *_ = pruner.scores()
    np.testing.assert_allclose(found, expected / expected.mean())


def test_random_scores_are_those_of_the_units():
    """Whatever went before, and not the same in every group."""
    pruner = small('Random')
    before = pruner.scores()
    assert (before[0][:5] != before[1]).all()
    pruner.prune(lambda n: n == 4)
    left = [
        scores[numbers]
        for scores, numbers in zip(before, pruner.net.units.numbers)
    ]
    for found, expected in zip(pruner.scores(), left, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_share_that_outlives_a_step():
    with pytest.raises(ValueError, match=r'decay=1.*less than 1'):
        CRITERIA.build(dict(type='Taylor', decay=1))
    pruner = small('Fisher')
    pruner.criterion.decay = 0.9
    learn(pruner)
    before = sums(pruner)
    pruner.prune(lambda n: n == 3)
    for old, new in zip(before, sums(pruner), strict=True):
        stay = np.sort(np.argsort(old)[len(old) - len(new) :])
        np.testing.assert_allclose(new, 0.9 * old[stay], rtol=1e-12)


@pytest.mark.parametrize(
    ('kind', 'importance'),
    [
        ('L1', dict(type='GroupMagnitudeImportance', p=1)),
        ('L2', dict(type='GroupMagnitudeImportance', p=2)),
        ('BNScale', dict(type='BNScaleImportance')),
    ],
)
def test_as_torch_pruning_has_them(kind, importance):
    """The same scores, so that only grouping and surgery differ."""
    torch_pruning = pytest.importorskip('torch_pruning')
    pruner = small(kind, model=make_model().float())
    model = pruner.net.model.float()
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(model, IMAGES)
    settings = dict(importance)
    measure = getattr(torch_pruning.importance, settings.pop('type'))
    names = {module: name for name, module in model.named_modules()}
    compared = 0
    for theirs in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        layers = {names.get(d.target.module) for d, _ in theirs}
        for group, found in zip(pruner.net.units.groups, pruner.scores()):
            if layers >= set(group.layers(*LAYERS)):
                compared += 1
                expected = measure(**settings)(theirs).numpy()
                np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert compared == 2


# -- from a config ---------------------------------------------------------


@pytest.mark.parametrize(
    ('criterion', 'message'),
    [
        ('L1', r"a dict such as dict\(type='L1'\), or ...criterion.type=L1"),
        ('L3', r"expected a dict such as dict\(type='Fisher'\)"),
        (dict(type='L1', batches=2), 'L1 has no argument batches=2. It takes'),
        (dict(type='Fihser'), "did you mean 'Fisher'"),
        (dict(type='Fisher', share=1), 'share'),
        (dict(type='Fisher', decay=2), 'decay=2'),
        (
            dict(type='KFAC', compensate=True),
            'KFAC has no argument compensate=True; it is an argument of '
            'PruningHook and SparsityHook',
        ),
        (
            dict(type='KFAC', density=0.2),
            'no argument density=0.2; it is an argument of SparsityHook',
        ),
    ],
)
def test_bad_settings(criterion, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, dict(criterion=criterion))


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (
            dict(
                type='mmgfp.PruningHook',
                criterion=dict(type='KFAC'),
                batches=4,
            ),
            'PruningHook has no argument batches=4; it is an argument of '
            r'KFAC: move it into criterion=dict\(...\), or use '
            '...criterion.batches on a command line',
        ),
        (
            dict(type='mmgfp.PruningHook', decay=0.5),
            'no argument decay=0.5; it is an argument of Fisher',
        ),
        (
            dict(type='mmgfp.PruningHook', density=0.2),
            'no argument density=0.2; it is an argument of SparsityHook',
        ),
        (
            dict(type='mmgfp.SparsityHook', density=0.2, strength=1),
            'no argument strength=1; it is an argument of KFAC',
        ),
        (
            dict(
                type='mmgfp.SparsityHook', density=0.2, target=dict(flops=0.5)
            ),
            'it is an argument of PruningHook and SearchHook',
        ),
        (
            dict(type='mmgfp.SearchHook', stepz=2),
            "no argument stepz=2; did you mean 'steps'",
        ),
        (
            dict(type='mmgfp.SearchHook', search=dict(type='DCSS'), order=3),
            'it is an argument of DCSS: move it into search=dict',
        ),
        (
            dict(
                type='mmgfp.SparsityHook',
                density=0.2,
                criterion=dict(type='Fisher', batches=16),
            ),
            'scores channels, not single weights',
        ),
    ],
)
def test_arguments_in_the_wrong_place(hook, message):
    with pytest.raises(ValueError, match=message):
        HOOKS.build(hook)


def test_criteria_for_weights_that_a_function_makes(monkeypatch):
    made = dict(CRITERIA.module_dict, Makes=lambda kind: make(kind))
    monkeypatch.setattr(CRITERIA, '_module_dict', made)
    for kind in ('Magnitude', 'L1'):
        hook = dict(type='mmgfp.SparsityHook', density=0.2)
        hook['criterion'] = dict(type='Makes', kind=kind)
        if kind == 'Magnitude':
            assert HOOKS.build(hook).criterion.elements
            continue
        with pytest.raises(ValueError, match='scores channels, not single'):
            HOOKS.build(hook)


def test_floors_hold_for_all():
    for kind in ALL:
        pruner = small(kind)
        pruner.limits.floor = Floor(min_channels=3)
        learn(pruner)
        pruner.prune(lambda n: False)
        assert [len(n) for n in pruner.net.units.numbers] == [3, 3]


def test_magnitude_of_units_and_of_single_weights():
    ours, theirs = (small(kind).scores() for kind in ('Magnitude', 'L1'))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    criterion = make('Magnitude')
    model = make_model()
    criterion.attach(model, UnitSpace([]))
    found = criterion.elements(['0.weight', '6.weight'])
    assert list(found) == ['0.weight', '6.weight']
    for name, scores in found.items():
        assert scores.equal(model.get_parameter(name).detach().abs())
