"""Passes over training data that leave the training as it is."""

from __future__ import annotations

import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from torch import nn
from toy import load, make_config, pruning_hook, removals, train

from mmgfp.criteria.kfac import KFAC
from mmgfp.engine import calibration
from mmgfp.engine.calibration import (
    _labels,
    calibrate,
    other_loader,
    show_features,
    train_loader,
)
from mmgfp.groups import UnitSpace

pytestmark = pytest.mark.usefixtures('waits')
KINDS = dict(criterion=dict(type='KFAC', batches=3), normalize_by='none')


def test_train_data_that_is_missing(tmp_path):
    annotations = str(tmp_path / 'no_such.json')
    config = Config(
        dict(
            train_dataloader=dict(
                batch_size=1,
                sampler=dict(type='DefaultSampler'),
                dataset=dict(type=BaseDataset, ann_file=annotations),
            )
        )
    )
    with pytest.raises(FileNotFoundError) as error:
        train_loader(config, 0)
    words = 'data set of train_dataloader is not here: .*no_such.json.*paths'
    assert re.search(words, str(error.value))


def test_one_class_has_no_labels_to_draw():
    """All drawn labels would be this class, and all gradients zero."""

    class OneScore(nn.Module):
        def _run_forward(self, data, mode):
            return data['inputs'].mean((1, 2, 3))[:, None]

    data = dict(inputs=torch.rand(4, 3, 2, 2))
    kind, why = _labels(OneScore(), data)
    assert kind == 'empirical' and 'two or more classes' in why


def test_fewer_images_than_one_raised_batch():
    loader = dict(
        batch_size=2,
        drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='ToyImages', size=6),
    )
    config = Config(dict(train_dataloader=loader))
    assert len(train_loader(config, 0)) == 3
    # a pass that wants eight images at once sees all six
    (batch,) = train_loader(config, 0, 8)
    assert len(batch['inputs']) == 6


class Counting(KFAC):
    """Notes what it is shown."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = []

    def end_batch(self, scale=1.0, valid=None, on_all_ranks=None):
        assert self._taps is not None
        self.seen.append(self._taps.images)
        return super().end_batch(scale, valid, on_all_ranks)


@pytest.fixture
def runner(tmp_path):
    made = Runner.from_cfg(make_config(tmp_path, custom_hooks=[]))
    assert made.train_loop  # built when it is asked for
    return made


def test_training_is_left_as_it_is(runner):
    model = runner.model
    model.train()
    model.drop.eval()  # each module keeps its mode
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    criterion = Counting(batches=2)
    calibrate(runner, criterion, UnitSpace([]))
    assert criterion.seen == [8, 8]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.conv1.training and not model.drop.training
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    assert not trained.pop('stem.weight') and all(trained.values())
    assert torch.equal(model.head.weight.grad, torch.ones(5, 8))
    assert model.conv1.weight.grad is None
    assert not model._forward_pre_hooks and not model.conv1._forward_hooks
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


class Looking:
    """A search that notes what it is shown."""

    images, batch = 20, 10

    def __init__(self, model):
        self.model, self.seen, self.sums = model, [], 0

    @contextmanager
    def observing(self):
        handle = self.model.register_forward_pre_hook(
            lambda module, args, kwargs: self.seen.append(kwargs['inputs']),
            with_kwargs=True,
        )
        yield
        handle.remove()
        assert not self.model.training and not torch.is_grad_enabled()

    def all_reduce(self, reduce):
        self.sums += 1


def test_features_of_large_batches(runner):
    """Estimates need several images in each forward; training has eight."""
    search = Looking(runner.model)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    show_features(
        runner.model, other_loader(runner, search.batch), search, print
    )
    assert [len(batch) for batch in search.seen] == [10, 10]
    assert search.sums == 1
    assert torch.equal(torch.rand(3), expected)
    search.batch = 1
    show_features(
        runner.model, other_loader(runner, search.batch), search, print
    )
    assert [len(batch) for batch in search.seen[2:]] == [8, 8, 8]


class Padding(BaseDataPreprocessor):
    """Pads the images of a batch in training alone, as MMSegmentation's."""

    augmented = 0

    def batch_augments(self, inputs):
        self.augmented += 1
        return inputs

    def forward(self, data, training=False):
        assert training, 'The image size in a batch should be the same.'
        if self.batch_augments is not None:
            data['inputs'] = self.batch_augments(data['inputs'])
        return super().forward(data, training)


def test_features_of_images_that_training_pads(runner):
    """They are those of the images themselves: without mixing them."""
    search = Looking(runner.model)
    runner.model.data_preprocessor = preprocess = Padding()
    show_features(
        runner.model, other_loader(runner, search.batch), search, print
    )
    assert len(search.seen) == 2
    assert preprocess.augmented == 0
    preprocess(dict(inputs=torch.ones(2, 3, 4, 4)), True)
    assert preprocess.augmented == 1


def test_all_layers_have_scores(runner):
    criterion = KFAC(batches=2)
    calibrate(runner, criterion, UnitSpace([]))
    names = ['stem.weight', 'depthwise.weight', 'head.weight']
    for name, scores in criterion.elements(names).items():
        weight = runner.model.get_parameter(name)
        assert scores.shape == weight.shape
        assert scores.isfinite().all() and (scores > 0).any()


@pytest.mark.parametrize('fisher', ['true', 'empirical'])
def test_labels(runner, fisher, monkeypatch):
    """Empirical ones are the data set's; others are drawn."""
    used = []
    for name in ('_drawn_loss', '_empirical_loss'):
        real = getattr(calibration, name)

        def note(model, data, name=name, real=real):
            used.append(name)
            return real(model, data)

        monkeypatch.setattr(calibration, name, note)
    calibrate(runner, KFAC(batches=2, fisher=fisher), UnitSpace([]))
    name = dict(true='_drawn_loss', empirical='_empirical_loss')[fisher]
    assert used == [name, name]


def test_drawn_labels_follow_the_prediction():
    class Model(torch.nn.Module):
        def _run_forward(self, data, mode):
            assert mode == 'tensor'
            return torch.tensor([[0.0, 50.0], [50.0, 0.0]])

    loss = calibration._drawn_loss(Model(), None)
    assert loss < 1e-6  # what it is sure of


def test_modes_of_the_network(runner):
    """Heads of detectors may compute something else in evaluation mode."""
    model = runner.model
    model.norm0 = nn.BatchNorm2d(8)
    model.attention = nn.MultiheadAttention(4, 2, dropout=0.5)
    seen = set()

    def look(module, *_):
        parts = model.norm0, model.drop, model.attention, model.conv1
        seen.add((model.training, *(part.training for part in parts)))

    model.stem.register_forward_hook(look)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for fisher, mode in (('true', False), ('empirical', True)):
        calibrate(runner, KFAC(batches=2, fisher=fisher), UnitSpace([]))
        assert seen == {(mode, False, False, False, mode)}
        seen.clear()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_buffers_that_change_in_training(runner):
    model = runner.model
    model.register_buffer('count', torch.zeros(()))
    model.stem.register_forward_hook(lambda *_: model.count.add_(1) and None)
    calibrate(runner, KFAC(batches=2), UnitSpace([]))
    assert not model.count


def test_networks_that_change_their_images(runner):
    runner.model.stem.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].mul_(2),)
    )
    criterion = Counting(batches=2, fisher='empirical')
    calibrate(runner, criterion, UnitSpace([]))
    assert criterion._counts.tolist() == [16, 2]


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_class_scores_that_are_not_finite(runner, bad):
    """No label can be drawn from them."""
    factors = iter([1.0, bad, 1.0, 1.0])  # the first asks for the kind
    runner.model.head.register_forward_hook(
        lambda _module, _inputs, out: out * next(factors)
    )
    criterion = KFAC(batches=3)
    calibrate(runner, criterion, UnitSpace([]))
    assert criterion._counts.tolist() == [16, 2]


@pytest.mark.parametrize(
    ('labels', 'kind'),
    [
        ([[1], [0]], 'true'),
        ([[1], [0, 1]], 'empirical'),
        ([[1], []], 'empirical'),
        ([[0.5], [0.1]], 'empirical'),
        ([None, None], 'true'),
        ([[1, 0]], 'true'),  # one sample for both images
        ([[1, 0, 2]], 'empirical'),
        ([[1]], 'empirical'),
        ([[0.5, 0.1]], 'empirical'),
    ],
)
@pytest.mark.parametrize('nested', [False, True])
def test_images_with_several_labels(runner, labels, kind, nested):
    """Their networks return scores of the same form."""

    class Model(nn.Module):
        def _run_forward(self, data, mode):
            return torch.zeros(2, 3)

    images = torch.zeros(2, 3, 4, 4)
    samples = []
    for values in labels:
        label = values and torch.tensor(values)
        if values == []:
            label = torch.zeros(0, dtype=torch.long)
        if nested and label is not None:
            label = SimpleNamespace(label=label)
        samples.append(SimpleNamespace(gt_label=label))
    found, _ = _labels(Model(), dict(inputs=images, data_samples=samples))
    assert found == kind


def test_progress(runner, monkeypatch, caplog):
    monkeypatch.setattr(calibration, '_PAUSE', -1)
    with caplog.at_level('INFO', runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        calibrate(runner, KFAC(batches=3), UnitSpace([]))
    lines = [text for text in caplog.messages if ' of 3 batches' in text]
    assert [line.split(',')[0] for line in lines[:2]] == [
        'calibration: 1 of 3 batches',
        'calibration: 2 of 3 batches',
    ]
    assert lines[0].endswith(' left') and len(lines) == 3


def test_batches_whose_loss_is_not_finite(runner, monkeypatch):
    real = calibration._empirical_loss
    factors = iter([float('nan'), 1.0, float('inf')])
    monkeypatch.setattr(
        calibration,
        '_empirical_loss',
        lambda model, data: real(model, data) * next(factors),
    )
    criterion = KFAC(batches=3, fisher='empirical')
    calibrate(runner, criterion, UnitSpace([]))
    assert criterion._counts.tolist() == [8, 1]


def test_no_batch_at_all(runner, monkeypatch):
    real = calibration._empirical_loss
    monkeypatch.setattr(
        calibration,
        '_empirical_loss',
        lambda model, data: real(model, data) * float('nan'),
    )
    with pytest.raises(ValueError, match='no batch with a finite loss'):
        calibrate(runner, KFAC(batches=2, fisher='empirical'), UnitSpace([]))


def test_labels_that_cannot_be_drawn(runner, caplog, monkeypatch):
    """As of a detector."""
    real = type(runner.model).forward

    def forward(self, *args, mode='tensor', **kwargs):
        out = real(self, *args, mode=mode, **kwargs)
        return (out,) if mode == 'tensor' else out

    monkeypatch.setattr(type(runner.model), 'forward', forward)
    with pytest.raises(ValueError, match="Use fisher='empirical'"):
        calibrate(runner, KFAC(batches=2, fisher='true'), UnitSpace([]))
    criterion = KFAC(batches=2)
    with caplog.at_level('INFO', runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        calibrate(runner, criterion, UnitSpace([]))
    assert criterion.elements(['stem.weight'])
    reason = (
        'the labels of the data set: ToyClassifier does not classify whole '
        'images into two or more classes'
    )
    assert reason in caplog.text


def test_layers_without_scores_are_named(runner, caplog, monkeypatch):
    monkeypatch.setattr(KFAC, 'unmeasured', lambda self: ['a', 'b'])
    with caplog.at_level('WARNING', runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        calibrate(runner, KFAC(batches=1), UnitSpace([]))
    assert '2 layers were not measured' in caplog.text
    assert 'add nothing to scores: a, b.' in caplog.text


def test_fewer_batches_than_asked_for(runner):
    criterion = Counting(batches=1000)
    calibrate(runner, criterion, UnitSpace([]))
    assert len(criterion.seen) == len(runner.train_dataloader)


def test_run_from_a_config(tmp_path):
    runner = train(tmp_path, KINDS, log_level='INFO')
    assert pruning_hook(runner).pruner.net.ratio('flops') <= 0.5
    assert load(tmp_path / 'flops_0.50.pth')
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert text.count('calibration with labels drawn from the pred') == 1
    assert 'calibration: 3 of 3 batches in' in text
    assert 'takes most of the time' not in text
    interval = pruning_hook(runner).schedule.interval
    assert (
        f"pruning by KFAC with normalize_by='none': a step every {interval} "
        'optimiser steps, until flops is at 0.5'
    ) in text
    assert removals(tmp_path)


def test_no_pass_before_a_step_that_prunes_nothing(tmp_path):
    """Several channels go at once, so that the next goals are reached."""
    hook = dict(KINDS, interval=1, round_to=4, channels_per_step='auto')
    train(tmp_path, hook, log_level='INFO')
    (log,) = tmp_path.glob('*/*.log')
    steps = {removal['iter'] for removal in removals(tmp_path)}
    assert log.read_text().count('calibration: 3 of 3 batches') == len(steps)
    assert len(steps) < 10


def test_passes_that_take_most_of_the_time(tmp_path):
    """As after a change of Fisher to KFAC alone."""
    hook = dict(KINDS, interval=2)
    train(tmp_path, hook, log_level='INFO')
    (log,) = tmp_path.glob('*/*.log')
    assert (
        log.read_text().count(
            'a calibration pass of 3 batches precedes each pruning step, '
            'every 2 training steps, and takes most of the time'
        )
        == 1
    )
