"""The record of scores and steps: what was compared, and what went when."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nets import InvertedResidual, run
from pruning import pruner_of, sums

from mmgfp import Pruner, find_groups
from mmgfp.cost.model import record_calls
from mmgfp.criteria.magnitude import L1
from mmgfp.report.charts import draw_scores
from mmgfp.search.budget import Budget
from mmgfp.search.limits import Floor
from mmgfp.search.prunable import Prunable
from mmgfp.search.search import cut_to_widths
from mmgfp.search.uniform import Uniform
from mmgfp.slimming.history import STAYS, Scores, no_scores
from mmgfp.slimming.structure import Axis, Structure


def made() -> Scores:
    """Two steps: the stem loses 1, then 3; fc saves nothing."""
    there = np.array([True, True, True, True, False])
    groups = {
        'stem': no_scores(['stem', 'project'], there),
        'fc': no_scores(['fc'], np.ones(2, bool)),
    }
    saving = np.array([2.0, 0.0])
    none = np.array([], int)
    both = np.arange(2)
    first = Scores('acts', groups).after(
        [np.arange(4), both],
        [np.array([4.0, 0.0, 6.0, 3.0]), np.array([1.0, 2.0])],
        saving,
        [np.array([1]), none],
        np.array([True, True]),
        10,
    )
    return first.after(
        [np.array([0, 2, 3]), both],
        [np.array([8.0, 2.0, 1.0]), np.array([1.0, 2.0])],
        saving,
        [np.array([3]), none],
        np.array([True, True]),
        20,
    )


def test_record():
    scores = made()
    assert (scores.step, scores.iteration) == (2, 20)
    stem, fc = scores.groups.values()
    assert stem.layers == ('stem', 'project')
    assert stem.scores.tolist() == [4, 0, 1, 0.5, 0]
    assert stem.removed.tolist() == [STAYS, 1, STAYS, 2, 0]
    # unknown, first step, second step; then what stays, by score
    assert stem.order().tolist() == [4, 1, 3, 2, 0]
    assert fc.scores.tolist() == [np.inf] * 2  # what saves nothing goes last
    assert fc.removed.tolist() == [STAYS] * 2
    values, chosen = scores.last_step('stem')
    assert values.tolist() == [4, 1, 0.5]
    assert chosen.tolist() == [False, False, True]


def test_saving_does_not_change_what_was_saved_before():
    scores = made()
    before = json.dumps(scores.to_dict())
    scores.after(
        [np.array([0, 2]), np.arange(2)],
        [np.ones(2), np.ones(2)],
        np.ones(2),
        [np.array([0]), np.array([0])],
        np.array([True, True]),
    )
    assert json.dumps(scores.to_dict()) == before


def structure() -> Structure:
    axes = {('stem.weight', 0): Axis(5, np.array([0, 2]))}
    return Structure(axes, 'Net', scores=made())


def test_file(tmp_path):
    path = tmp_path / 'flops_0.50.json'
    structure().save(path)
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    groups = plain['scores']['groups']
    assert groups['stem']['scores'] == [4, 0, 1, 0.5, 0]
    assert groups['stem']['removed'] == [-1, 1, -1, 2, 0]
    assert groups['fc']['scores'] == [None, None]
    assert Structure.load(path).to_dict() == structure().to_dict() == plain
    # a line for each tensor and each group, whatever their size
    longest = max(path.read_text().splitlines(), key=len)
    assert longest.startswith('"stem": {"layers"')


def test_a_group_that_a_step_leaves_out(tmp_path):
    scores = made()
    none = np.array([], int)
    third = scores.after(
        [np.array([0, 2]), np.arange(2)],
        [np.array([9.0, 9.0]), np.array([5.0, 6.0])],
        np.ones(2),
        [none, np.array([0])],
        np.array([False, True]),
        30,
    )
    assert third.groups['stem'].scores.tolist() == [4, 0, 1, 0.5, 0]
    assert third.last_step('stem')[0].tolist() == []
    assert third.last_step('stem')[1].tolist() == []
    assert third.last_step('fc')[0].tolist() == [5, 6]
    plain = json.loads(json.dumps(third.to_dict()))
    assert plain['groups']['stem']['left_out'] is True
    assert 'left_out' not in plain['groups']['fc']
    read = Scores.from_dict(plain)
    assert read.groups['stem'].left_out and not read.groups['fc'].left_out
    draw_scores(read, tmp_path / 'scores.png')  # without that group
    none_left = third.after(
        [none] * 2, [none] * 2, np.ones(2), [none] * 2, np.zeros(2)
    )
    draw_scores(none_left, tmp_path / 'none.png')
    # the next step compares it again
    fourth = read.after(
        [np.array([0, 2]), np.array([1])],
        [np.array([9.0, 9.0]), np.array([6.0])],
        np.ones(2),
        [none, none],
        np.array([True, True]),
    )
    assert not fourth.groups['stem'].left_out
    assert fourth.last_step('stem')[0].tolist() == [9, 9]


@pytest.mark.parametrize(
    'damage',
    [
        dict(groups={'stem': 1}),
        dict(groups={'stem': dict(layers=[], scores=[1.0], removed=[])}),
        dict(groups={'stem': dict(layers=[], scores=1.0, removed=1)}),
        dict(step='first'),
        dict(groups=None),
    ],
)
def test_damaged(damage):
    plain = structure().to_dict()
    plain['scores'].update(damage)
    with pytest.raises(ValueError, match=r'a\.json is damaged'):
        Structure.from_dict(plain, 'a.json')


@pytest.mark.parametrize('normalize_by', ['acts', 'flops', 'none'])
@pytest.mark.parametrize('cut_to', [0, 1])
def test_of_a_pruner(normalize_by, cut_to):
    """Masked units are no longer compared, whether they are cut out or not.

    What one unit saves is counted by removing one. After the second step
    another pruner goes on with the slim network.
    """
    torch.manual_seed(0)
    model = InvertedResidual()
    groups = find_groups(model, run, images=2)
    full = [group for group in groups if not group.frozen]
    there = {group.name: np.arange(group.size) for group in full}
    pruner = make_pruner(model, groups, normalize_by, cut_to)
    assert pruner.net.structure().scores is None
    for step in range(1, 5):
        if step == 3:
            pruner.cut()
            plain = pruner.net.structure().to_dict()
            pruner.detach()
            pruner = make_pruner(
                *(model, groups, normalize_by, cut_to),
                Structure.from_dict(json.loads(json.dumps(plain))),
            )
        run(model)[0].square().sum().backward()
        pruner.criterion.end_batch()
        names = [group.name for group in pruner.net.units.groups]
        fisher = dict(zip(names, sums(pruner)))
        masked = dict(zip(names, map(np.copy, pruner.net.masked)))
        saved = {n: saving(pruner, i) for i, n in enumerate(names)}
        removed = pruner.prune(lambda n: n == 4, iteration=10 * step)
        scores = pruner.net.structure().scores
        assert scores.normalize_by == normalize_by
        assert (scores.step, scores.iteration) == (step, 10 * step)
        assert [*scores.groups] == names
        for name, group in scores.groups.items():
            expected = fisher[name][~masked[name]] / saved[name]
            compared = group.scores[there[name]]
            np.testing.assert_allclose(compared, expected, rtol=1e-9)
            gone = [r for r in removed if r.group == name]
            chosen = np.flatnonzero(group.removed == step)
            assert len(chosen) == len(gone)
            assert np.isin(chosen, there[name]).all()
            smallest = np.sort(compared)[: len(gone)]
            assert np.sort(group.scores[chosen]) == pytest.approx(smallest)
            there[name] = np.setdiff1d(there[name], chosen)
            assert (group.removed[there[name]] == STAYS).all()
    kept = pruner.net.structure().keep
    for group in full:
        for member in group.members:
            positions = member.index[there[group.name]].ravel()
            assert np.isin(positions, kept[member.tensor, member.axis]).all()


def test_a_structure_that_tells_no_scores():
    torch.manual_seed(0)
    model = InvertedResidual()
    groups = find_groups(model, run, images=2)
    pruner = make_pruner(model, groups, 'acts', 1)
    run(model)[0].square().sum().backward()
    pruner.criterion.end_batch()
    pruner.prune(lambda n: n == 6)
    plain = pruner.net.structure().to_dict()
    lost = plain.pop('scores')
    pruner.detach()
    again = make_pruner(model, groups, 'acts', 1, Structure.from_dict(plain))
    run(model)[0].square().sum().backward()
    again.criterion.end_batch()
    again.prune(lambda n: n == 1)
    known = again.net.structure().scores
    assert known.step == 1
    for name, group in known.groups.items():
        earlier = np.array(lost['groups'][name]['removed']) == 1
        assert ((group.removed == 0) == earlier).all()
        assert group.order()[: earlier.sum()].tolist() == (
            np.flatnonzero(earlier).tolist()
        )


def test_which_criterion_made_the_scores():
    torch.manual_seed(0)
    model = InvertedResidual()
    groups = find_groups(model, run, images=2)
    calls = record_calls(model, lambda: run(model))
    pruner = pruner_of(model, groups, calls, 'acts', cut_to=1)
    run(model)[0].square().sum().backward()
    pruner.criterion.end_batch()
    pruner.prune(lambda n: n == 3)
    pruner.detach()
    plain = json.loads(json.dumps(pruner.net.structure().to_dict()))
    assert plain['scores']['criterion'] == 'Fisher'
    assert plain['scores']['normalize_by'] == 'acts'
    first = Structure.from_dict(plain)
    net = Prunable(
        *(model, groups, calls, first),
        cut_to=1,
    )
    # what was loaded stays the record until a step is made
    assert net.structure().to_dict()['scores'] == plain['scores']
    search = Uniform(order=L1())
    search.criterion.attach(model, net.units)
    scores = net.units.split(
        search.criterion.scores(~np.concatenate(net.masked))
    )
    budget = Budget('flops', 0.5, Floor())
    search.start(net, budget, scores)
    cut_to_widths(net, search, budget, scores)
    found = net.structure().scores
    # a search compares scores as they are
    assert (found.criterion, found.normalize_by) == ('L1', 'none')
    assert found.step == 2


def test_an_older_file_does_not_name_the_criterion():
    plain = structure().to_dict()
    assert 'criterion' not in plain['scores']
    assert Structure.from_dict(plain).scores.criterion == ''
    plain['scores']['criterion'] = 1
    with pytest.raises(ValueError, match='damaged'):
        Structure.from_dict(plain)


def make_pruner(model, groups, normalize_by, cut_to, structure=None):
    calls = record_calls(model, lambda: run(model))
    pruner = pruner_of(
        *(model, groups, calls, normalize_by),
        structure=structure,
        cut_to=cut_to,
    )
    pruner.attach()
    return pruner


def saving(pruner: Pruner, group: int) -> float:
    if pruner.normalize_by == 'none':
        return 1.0
    one = np.zeros(len(pruner.net.units.groups), int)
    one[group] = 1
    metric = pruner.normalize_by
    return (
        pruner.net.cost()[metric]
        - pruner.net.cost_model.after_cut(one)[metric]
    )
