"""Rounding the widths of slim networks: which channels, and whose weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from digit_models import maker
from nets import (
    Attention,
    FlattenedLinear,
    GroupedConv,
    GroupNorm,
    InvertedResidual,
    Residual,
    run,
)
from oracles import (
    attribute,
    kept,
    masked,
    outputs,
    randomize,
    worst_difference,
)
from shortcuts import remember

from mmgfp import find_groups
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.export.rounding import put_back, round_structure
from mmgfp.groups import ATTRIBUTE
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner
from mmgfp.libraries.models import load_model
from mmgfp.slimming.history import STAYS, GroupScores, Scores
from mmgfp.slimming.structure import KEY, Axis, Structure
from mmgfp.slimming.surgery import named_tensors

NETS = [
    Residual,
    InvertedResidual,
    GroupNorm,
    GroupedConv,
    FlattenedLinear,
    Attention,
]
DIRECTIONS = ['down', 'up', 'nearest']


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    return maker(tmp_path_factory.mktemp)


@remember
def pruned(net, seed: int = 0):
    """A full network, its prunable groups, and a structure by two steps.

    Tests change none of them.
    """
    torch.manual_seed(seed)
    model = randomize(net().eval(), seed)
    groups = [g for g in find_groups(model, run, images=2) if not g.frozen]
    rng = np.random.default_rng(seed)
    record, removal = {}, {}
    for group in groups:
        scores = rng.random(group.size)
        count = int(rng.integers(0, group.size))
        gone = rng.permutation(group.size)[:count]
        removed = np.full(group.size, STAYS)
        removed[gone] = rng.integers(1, 3, count)
        record[group.name] = GroupScores(('x',), scores, removed)
        removal[group.name] = gone
    axes = axes_of(model, groups, removal)
    scores = Scores('acts', record, step=2)
    return model, groups, Structure(axes, net.__name__, scores=scores)


def axes_of(model, groups, removal):
    tensors = named_tensors(model)
    axes = {}
    for (name, axis), stay in kept(model, groups, removal).items():
        size = (
            attribute(model, name)
            if axis == ATTRIBUTE
            else tensors[name].shape[axis]
        )
        if len(stay) < size:
            axes[name, axis] = Axis(size, stay)
    return axes


def expected_units(group, known, multiple, direction):
    """Add or drop one unit after the other."""
    stays = [u for u in range(group.size) if known.removed[u] == STAYS]
    if len(stays) == group.size:
        return stays
    gone = [u for u in range(group.size) if u not in stays]

    def fits(units):
        return len(units) * group.width % multiple == 0

    less = sorted(stays, key=lambda u: known.scores[u])
    while less and not fits(less):
        less.pop(0)
    more = list(stays)
    latest = sorted(gone, key=lambda u: (known.removed[u], known.scores[u]))
    while latest and not fits(more):
        more.append(latest.pop())
    if direction == 'down':
        return sorted(less or stays)
    if direction == 'up' or not less:
        return sorted(more)
    nearer = len(stays) - len(less) < len(more) - len(stays)
    return sorted(less if nearer else more)


@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('multiple', [1, 2, 3, 4, 16])
@pytest.mark.parametrize('net', NETS)
def test_which_units(net, multiple, direction):
    for seed in range(3):
        model, groups, structure = pruned(net, seed)
        rounded, changes = round_structure(
            structure, model, groups, multiple, direction
        )
        removal, widths = {}, {}
        for group in groups:
            known = structure.scores.groups[group.name]
            stay = expected_units(group, known, multiple, direction)
            removal[group.name] = np.setdiff1d(np.arange(group.size), stay)
            if (known.removed != STAYS).any():
                before = (known.removed == STAYS).sum() * group.width
                widths[group.name] = (before, len(stay) * group.width)
            after = rounded.scores.groups[group.name]
            assert (np.flatnonzero(after.removed == STAYS) == stay).all()
        assert {c.group: (c.before, c.after) for c in changes} == widths
        wanted = axes_of(model, groups, removal)
        assert wanted.keys() == rounded.axes.keys()
        for key, axis in wanted.items():
            assert (axis.keep == rounded.axes[key].keep).all()
            assert axis.size == rounded.axes[key].size


@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('net', NETS)
def test_rounded_equals_masked(net, direction):
    """The slim network was trained on; what comes back was not."""
    changed = [
        check_rounded(net, direction, seed, multiple)
        for seed in range(5)
        for multiple in (2, 3, 4)
    ]
    assert any(changed)


def check_rounded(net, direction, seed, multiple):
    model, groups, structure = pruned(net, seed)
    full = copy.deepcopy(model)
    slim = copy.deepcopy(model)
    structure.apply(slim)
    randomize(slim, 7)

    # by masks of elements instead of positions
    both = copy.deepcopy(model)
    for name, tensor in named_tensors(both).items():
        there = torch.ones(tensor.shape, dtype=torch.bool)
        for (other, axis), entry in structure.axes.items():
            if other == name:
                gone = np.setdiff1d(np.arange(entry.size), entry.keep)
                there.transpose(0, axis)[gone] = False
        with torch.no_grad():
            tensor.masked_scatter_(there, named_tensors(slim)[name])

    rounded, changes = round_structure(
        structure, full, groups, multiple, direction
    )
    put_back(full, slim, structure)
    rounded.apply(full)
    removal = {
        name: np.flatnonzero(group.removed != STAYS)
        for name, group in rounded.scores.groups.items()
    }
    with masked(both, groups, removal):
        wanted = outputs(both, run)
    assert worst_difference(outputs(full, run), wanted) < 1e-5
    return any(change.before != change.after for change in changes)


def test_a_group_without_record_stays_as_it_is():
    model, groups, structure = pruned(Residual)
    known = dict(structure.scores.groups)
    name = next(n for n, g in known.items() if (g.removed != STAYS).any())
    del known[name]
    less = replace(structure, scores=replace(structure.scores, groups=known))
    rounded, changes = round_structure(less, model, groups, 4, 'up')
    assert name not in {change.group for change in changes}
    (group,) = (g for g in groups if g.name == name)
    for member in group.members:
        key = member.tensor, member.axis
        before = np.isin(member.index, structure.axes[key].keep)
        assert (np.isin(member.index, rounded.axes[key].keep) == before).all()


def test_scores_of_something_else():
    model, groups, structure = pruned(Residual)
    bare = replace(structure, scores=None)
    with pytest.raises(ValueError, match='Residual holds no scores'):
        round_structure(bare, model, groups, 4, 'down')
    known = dict(structure.scores.groups)
    name = next(n for n, g in known.items() if (g.removed != STAYS).any())
    other = known[name].removed.copy()
    other[other != STAYS] = STAYS
    for removed in (other, other[1:]):
        known[name] = replace(known[name], removed=removed)
        wrong = replace(
            structure, scores=replace(structure.scores, groups=known)
        )
        with pytest.raises(ValueError, match=f'not fit its.*{name}'):
            round_structure(wrong, model, groups, 4, 'down')


# -- the tool ---------------------------------------------------------------


def export(case, form, out, *options):
    pytest.importorskip('onnxruntime')
    from mmgfp.commands import export as tool

    config, checkpoint = case.pair(form)
    result = out.with_suffix('.json')
    given = [config, checkpoint, '--out', out, '--json', result]
    given += ['--shape', *case.shape, '--check', *options]
    tool.main([str(x) for x in given])
    return json.loads(result.read_text())


@pytest.mark.parametrize('form', ['slim', 'generated'])
@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'resnet'])
def test_export(cases, tmp_path, name, form, capsys):
    """Channels that are given back have the weights of the full network."""
    case = cases(name)
    config, _ = case.pair('slim')
    out = tmp_path / 'model.onnx'
    options = ['--rounding', 'up', '--full-weights', case.full]
    result = export(case, form, out, '--round-to', 8, *options)
    printed = capsys.readouterr().out
    assert 'rounded to 8' in printed
    assert str(tmp_path / 'model_rounded.pth') in printed

    found = result['rounding']
    moved = [g for g in found['groups'] if g['before'] != g['after']]
    assert moved
    for group in found['groups']:
        assert group['after'] in (-(-group['before'] // 8) * 8,)
    rounded = load_model(load_config(config), found['checkpoint'])
    run = cost_runner(case.shape)
    calls = record_calls(rounded, lambda: run(rounded))
    assert found['cost_rounded'] == count_cost(rounded, calls)['']
    assert result['params'] == sum(p.numel() for p in rounded.parameters())

    # with random weights that nobody trained on, all are the full network's
    full = load_model(load_config(config), case.full)
    checkpoint = torch.load(found['checkpoint'], weights_only=True)
    structure = Structure.from_dict(checkpoint[KEY])
    structure.apply(full)
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(checkpoint['state_dict'][name], tensor)
    assert structure.cost_after == found['cost_rounded']


def test_dropping_makes_the_file_smaller(cases, tmp_path):
    case = cases('resnet')
    before = export(case, 'slim', tmp_path / 'a.onnx')
    assert 'rounding' not in before
    assert not (tmp_path / 'a_rounded.pth').exists()
    after = export(case, 'slim', tmp_path / 'b.onnx', '--round-to', 3)
    assert after['params'] < before['params']
    for group in after['rounding']['groups']:
        assert group['after'] in (
            group['before'] // 3 * 3,
            *[group['before']][: group['before'] < 3],
        )


@pytest.mark.parametrize(
    'options, words',
    [
        (['--rounding', 'up'], '--rounding up needs --round-to'),
        (
            ['--round-to', '8', '--rounding', 'nearest'],
            '--rounding nearest needs --full-weights',
        ),
        (
            ['--round-to', '8', '--full-weights', 'a.pth'],
            '--full-weights needs --rounding up or nearest',
        ),
        (['--round-to', '0'], "'0': expected a whole number from 1"),
    ],
)
def test_bad_options(cases, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit):
        export(cases('resnet'), 'slim', tmp_path / 'a.onnx', *options)
    assert words in capsys.readouterr().err


def test_bad_checkpoints(cases, tmp_path, capsys):
    case = cases('resnet')
    out = tmp_path / 'a.onnx'

    def refused(form, *options):
        with pytest.raises(SystemExit):
            export(case, form, out, '--round-to', 8, *options)
        return capsys.readouterr().err

    assert 'full.pth holds no structure' in refused('full')
    up = ['--rounding', 'up', '--full-weights']
    assert 'slim.pth are those of a slim' in refused('slim', *up, case.slim)
    assert 'gone.pth does not exist' in refused('slim', *up, 'gone.pth')
    full = torch.load(case.full, weights_only=True)
    del full['state_dict']['backbone.conv1.weight']
    part = case.full.parent / 'part.pth'
    torch.save(full, part)
    error = refused('slim', *up, part)
    assert 'part.pth does not fit the config' in error
    assert "1 are missing ('backbone.conv1.weight')" in error
    assert not list(tmp_path.iterdir())
