"""Scores of a pruning step: those that were compared, and their file."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from nets import InvertedResidual, run

from mmgfp import GroupFisherPruner, find_groups
from mmgfp.cost import record_calls
from mmgfp.scores import StepScores, step_scores


def made() -> StepScores:
    fisher = [np.array([4.0, 0.0, 6.0]), np.array([1.0, 2.0])]
    return step_scores(
        'acts',
        {'stem': ('stem', 'project'), 'fc': ('fc',)},
        fisher,
        np.array([2.0, 0.0]),
        [np.array([2, 1]), np.array([], int)],
    )


def test_normalised():
    stem, fc = made().groups.values()
    assert stem.layers == ('stem', 'project')
    assert stem.scores.tolist() == [2, 0, 3]
    assert stem.chosen.tolist() == [1, 2]
    assert fc.scores.tolist() == [np.inf] * 2  # what saves nothing goes last
    assert not len(fc.chosen)


def test_file(tmp_path):
    path = tmp_path / 'flops_0.50_scores.json'
    made().save(path)
    assert os.listdir(tmp_path) == [path.name]
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert plain['groups']['stem']['scores'] == [2, 0, 3]
    assert plain['groups']['fc']['scores'] == [None, None]
    assert StepScores.load(path).to_dict() == made().to_dict() == plain


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{"format": "mmgfp-structure", "version": 1}',
        '{"format": "mmgfp-scores", "version": 2}',
        '{"format": "mmgfp-scores", "version": 1, "groups": {"a": 1}}',
    ],
)
def test_damaged_file(tmp_path, content):
    path = tmp_path / 'a_scores.json'
    path.write_text(content)
    with pytest.raises(ValueError, match='holds no scores of mmgfp'):
        StepScores.load(path)


def test_interrupted_saving_leaves_no_final_name(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        made().save(tmp_path / 'a.json')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('normalize_by', ['acts', 'flops', 'none'])
@pytest.mark.parametrize('cut_to', [0, 1])
def test_of_a_pruner(normalize_by, cut_to):
    """Masked units are no longer compared, whether they are cut out or not.

    What one unit saves is counted by removing one.
    """
    torch.manual_seed(0)
    model = InvertedResidual()
    groups = find_groups(model, run, images=2)
    calls = record_calls(model, lambda: run(model))
    pruner = GroupFisherPruner(
        model, groups, calls, normalize_by, cut_to=cut_to
    )
    assert pruner.last_step is None
    pruner.attach()
    names = [group.name for group in pruner.groups]
    sizes = {group.name: group.size for group in pruner.groups}
    for _ in range(3):
        run(model)[0].square().sum().backward()
        pruner.accumulate()
        fisher = dict(zip(names, pruner.fisher()))
        masked = dict(zip(names, map(np.copy, pruner._masked)))
        saved = {n: saving(pruner, i) for i, n in enumerate(names)}
        removed = pruner.prune(lambda n: n == 4)
        step = pruner.last_step
        assert step.normalize_by == normalize_by
        assert [*step.groups] == names
        for name, group in step.groups.items():
            expected = fisher[name][~masked[name]] / saved[name]
            np.testing.assert_allclose(group.scores, expected, rtol=1e-9)
            assert len(group.scores) == sizes[name]
            gone = [r for r in removed if r.group == name]
            assert len(group.chosen) == len(gone)
            smallest = np.sort(group.scores)[: len(gone)]
            assert np.sort(group.scores[group.chosen]) == (
                pytest.approx(smallest)
            )
            sizes[name] -= len(gone)


def saving(pruner: GroupFisherPruner, group: int) -> float:
    if pruner.normalize_by == 'none':
        return 1.0
    one = np.zeros(len(pruner.groups), int)
    one[group] = 1
    metric = pruner.normalize_by
    return pruner.cost()[metric] - pruner._cost.without(one)[metric]
