"""The page about a pruning run: what it shows is what is in the files."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmcv.transforms  # noqa: F401  (registers what loads pictures)
import numpy as np
import pytest
import torch
from matplotlib import image
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, LabelData
from processes import run_tool
from pruning import sums
from torch import nn
from toy import (
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
    train,
    validated,
)

import mmgfp.report.page
from mmgfp import FisherPruningHook, Structure
from mmgfp.report import charts, workdir
from mmgfp.report.networks import read_pruning_run
from mmgfp.report.page import write_report
from mmgfp.report.predictions import (
    build_visualizer,
    draw_prediction,
    predict,
)
from mmgfp.report.workdir import join_scalars, read_runs

NO_ACCURACY = 'No accuracy was found: no run'


class Watch(Hook):
    """Notes what the pruner is about to compare."""

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        pruner = pruning_hook(runner).pruner
        prune = pruner.prune

        def noting(*args, **kwargs):
            cost = pruner.net.saved('acts')
            self.seen = {
                group.name: fisher / c
                for group, fisher, c in zip(
                    pruner.net.units.groups, sums(pruner), cost
                )
            }
            return prune(*args, **kwargs)

        pruner.prune = noting


@pytest.fixture(scope='module')
def pruned(tmp_path_factory):
    """A run that was told to write the page, and what it compared."""
    folder = tmp_path_factory.mktemp('report') / 'prune'
    config = make_config(folder, hook=dict(report=True, after_target='train'))
    runner = Runner.from_cfg(config)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return folder, removals(folder), watch.seen


def html_of(folder: Path) -> str:
    return (folder / 'report.html').read_text('utf-8')


def leave_run(
    folder: Path,
    load_from: str | Path | None = None,
    records: tuple = (),
    tested: dict | None = None,
    resume: bool = False,
) -> None:
    """The files that a run of MMEngine leaves."""
    data = folder / 'vis_data'
    data.mkdir(parents=True)
    found = None if load_from is None else str(load_from)
    (data / 'config.py').write_text(
        f'load_from = {found!r}\nmodel = dict(type="Net")\nresume = {resume}\n'
    )
    if records:
        lines = ''.join(json.dumps(record) + '\n' for record in records)
        (data / 'scalars.json').write_text(lines)
    if tested:
        (folder / f'{folder.name}.json').write_text(json.dumps(tested))


def steps(*at: int, **values: float) -> tuple:
    return tuple(dict(loss=1.0, iter=i, step=i, **values) for i in at)


# -- the page ---------------------------------------------------------------


def test_hook_writes_the_page(pruned):
    folder, _, _ = pruned
    html = html_of(folder)
    assert html.startswith('<!DOCTYPE html>') and html.endswith('</html>\n')
    saved = Structure.load(folder / 'flops_0.50.json')
    left = round(100 * saved.ratio('flops'))
    title = f'ToyClassifier: {left} % of the flops left'
    assert f'<title>{title}</title>' in html and f'<h1>{title}</h1>' in html
    assert NO_ACCURACY in html
    assert 'that the run began with (load_from) is not known' in html
    assert sorted(p.name for p in (folder / 'report').iterdir()) == [
        'channels_flops_0.50.png',
        'channels_flops_0.75.png',
        'progress.png',
        'scores_flops_0.50.png',
    ]
    for png in (folder / 'report').iterdir():
        assert image.imread(png).size
    assert not [*folder.glob('**/*.partial*')]


def test_nothing_from_elsewhere(pruned):
    html = html_of(pruned[0])
    assert 'http' not in html and '@import' not in html
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == 4
    assert all(s.startswith('data:image/png;base64,') for s in sources)
    assert all(link[0] == '#' for link in re.findall(r'href="([^"]*)', html))
    assert not re.findall(r'url\(|<script|<link', html)


def test_numbers_of_the_structure(pruned):
    folder, _, _ = pruned
    html = html_of(folder)
    for stem in ('flops_0.75', 'flops_0.50'):
        structure = Structure.load(folder / f'{stem}.json')
        for metric, cost in structure.cost_after.items():
            assert f'<td>{cost:,.0f}</td>' in html
            assert f'<td>{structure.cost_before[metric]:,.0f}</td>' in html
            assert f'({structure.ratio(metric):.1%})' in html
        size = sum(
            tensor.numel() * tensor.element_size()
            for tensor in load(folder / f'{stem}.pth')['state_dict'].values()
        )
        assert f'<td>{size / 1e6:.2f} MB</td>' in html


def test_scores_are_those_that_were_compared(pruned):
    folder, removed, seen = pruned
    scores = Structure.load(folder / 'flops_0.50.json').scores
    assert scores.iteration == removed[-1]['iter']
    assert scores.normalize_by == 'acts'
    assert scores.groups.keys() == seen.keys() == {'stem', 'conv1'}
    assert scores.groups['stem'].layers == ('stem', 'conv2')
    for name in scores.groups:
        compared, chosen = scores.last_step(name)
        np.testing.assert_allclose(compared, seen[name], rtol=1e-5)
        tensor = f'{name}.weight'
        before, after = (kept(r['left'], tensor) for r in removed[-2:])
        gone = np.flatnonzero(~np.isin(before, after))
        # norms of two channels each: a unit is two channels
        assert len(gone) == 2 * chosen.sum()
        assert np.flatnonzero(chosen).tolist() == np.unique(gone // 2).tolist()


def kept(left: dict, tensor: str) -> np.ndarray:
    if tensor not in left:
        return np.arange(8)  # the stem, whole
    runs = left[tensor]['0']['keep']
    return np.concatenate([np.arange(*run) for run in runs])


def test_elsewhere_and_of_a_moved_run(pruned, tmp_path):
    out = tmp_path / 'new' / 'page.html'
    assert write_report(pruned[0], out) == out
    assert sorted(os.listdir(out.parent)) == ['page', 'page.html']
    assert out.read_text('utf-8') == html_of(pruned[0])


def test_files_that_are_missing(tmp_path, pruned):
    """Those of older runs: each is told in a sentence."""
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    html = write_report(work_dir).read_text('utf-8')
    assert 'The figure flops_0.50.png was not found.' in html
    assert 'there is no scalars.json' in html
    assert 'There are no scores in flops_0.50.json' in html
    assert NO_ACCURACY in html
    assert '<td>not found</td>' in html  # the checkpoints
    assert not list((tmp_path / 'prune' / 'report').iterdir())


def copy_structures(source: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for stem in ('flops_0.75', 'flops_0.50'):
        content = json.loads((source / f'{stem}.json').read_text())
        content.pop('scores', None)
        (to / f'{stem}.json').write_text(json.dumps(content))
    return to


def test_interrupted_writing_leaves_no_page(tmp_path, pruned, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(work_dir)
    assert not [*work_dir.glob('report.html*')]


def test_text_of_files_is_escaped(tmp_path, pruned):
    folder = copy_structures(pruned[0], tmp_path / '<b>&')
    html = write_report(folder).read_text('utf-8')
    assert '<b>' not in html and '&lt;b&gt;&amp;' in html


def test_of_a_network_that_was_slim_before(tmp_path):
    """What the run began with is not the original."""
    train(tmp_path / 'a')
    slim = tmp_path / 'a' / 'flops_0.75.pth'
    train(
        tmp_path / 'b', load_from=str(slim), hook=dict(target=dict(flops=0.4))
    )
    run = read_pruning_run(tmp_path / 'b')
    before = Structure.load(slim)
    assert run.networks[0].checkpoint == str(slim)
    assert run.networks[0].cost == before.cost_after
    html = write_report(tmp_path / 'b').read_text('utf-8')
    assert f'({before.ratio("flops"):.1%})' in html and '100.0%' not in html


# -- scalars ----------------------------------------------------------------


def test_scalars_of_a_resumed_run(tmp_path):
    leave_run(
        tmp_path / '20260101_000000',
        'base.pth',
        (*steps(10, 20, flops=0.9), dict(acc=0.5, step=1), *steps(30, 40)),
    )
    # began again at 25, and was cut off within a line
    leave_run(
        tmp_path / '20260102_000000',
        None,
        (*steps(30, flops=0.8), dict(acc=0.6, step=2)),
        resume=True,
    )
    path = tmp_path / '20260102_000000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text() + '{"loss": 1, "it')
    leave_run(tmp_path / '20260103_000000', tested=dict(acc=0.7))
    (tmp_path / '20260104_000000').mkdir()  # ended before it began
    leave_run(tmp_path / '20260105_000000')
    cut = tmp_path / '20260105_000000' / 'vis_data' / 'config.py'
    cut.write_text('model = dict(')
    joined = join_scalars(read_runs(tmp_path))
    assert [r.get('iter', r.get('acc')) for r in joined] == (
        [10, 20, 0.5, 30, 0.6]
    )
    assert joined[3]['flops'] == 0.8


def test_scalars_of_a_run_that_was_started_anew(tmp_path):
    leave_run(tmp_path / '20260101_000000', None, steps(10, 20, loss2=1))
    leave_run(tmp_path / '20260102_000000', None, steps(10, loss2=2))
    assert join_scalars(read_runs(tmp_path)) == [*steps(10, loss2=2)]


def test_logged_shares_are_joined(pruned):
    """MMEngine's scalars hold what the hook told the message hub."""
    folder = pruned[0]
    run = read_pruning_run(folder)
    assert [r['step'] for r in run.records] == list(range(1, 25))
    structure = Structure.load(folder / 'flops_0.50.json')
    last = run.records[-1]
    for metric in ('flops', 'acts', 'params'):
        assert last[metric] == pytest.approx(structure.ratio(metric))
    assert last['channels_pruned'] > 0


def test_scalars_in_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    train(
        tmp_path,
        vis_backends=[dict(type='TensorboardVisBackend')],
        visualizer=dict(
            type='Visualizer',
            name='tensorboard',
            vis_backends=[dict(type='TensorboardVisBackend')],
        ),
    )
    (file,) = tmp_path.glob('*/vis_data/events*')
    events = EventAccumulator(str(file)).Reload()
    assert events.Scalars('flops')[-1].value <= 0.5
    assert events.Scalars('channels_pruned')[-1].value > 0


# -- accuracy ---------------------------------------------------------------


def test_results_of_runs_around(tmp_path, pruned):
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    base = tmp_path / 'base' / 'epoch_1.pth'
    slim = work_dir / 'flops_0.50.pth'
    tuned = work_dir / 'flops_0.50_finetune' / 'epoch_2.pth'
    for path in (base, slim, tuned):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    leave_run(
        work_dir / '20260101_000000',
        base,
        (
            *steps(10, flops=0.8, acts=0.9, params=0.7, channels_pruned=2),
            dict(acc=0.81, step=1),
        ),
    )
    leave_run(work_dir / '20260102_000000', slim, tested=dict(acc=0.62))
    leave_run(
        tuned.parent / '20260103_000000',
        slim,
        (*steps(10), dict(acc=0.83, step=1)),
    )
    leave_run(tuned.parent / '20260104_000000', tuned, tested=dict(acc=0.84))
    beside = tmp_path / 'tests'
    leave_run(beside / '20260105_000000', base, tested=dict(acc=0.95))
    # another network of the same name
    other = tmp_path / 'other' / 'flops_0.75.pth'
    other.parent.mkdir()
    other.touch()
    leave_run(beside / '20260106_000000', other, tested=dict(acc=0.11))

    run = read_pruning_run(work_dir)
    assert run.metric == 'acc'
    found = {
        network.name: [(e.what, e.metrics['acc']) for e in network.evaluations]
        for network in run.networks
    }
    assert found == {
        'baseline': [('test', 0.95)],
        'flops_0.75': [],
        'flops_0.50': [('test', 0.62)],
        'flops_0.50 fine-tuned': [('validation', 0.83), ('test', 0.84)],
    }
    (validation,) = run.evaluations
    assert validation.metrics == dict(acc=0.81)
    assert validation.ratios == dict(flops=0.8, acts=0.9, params=0.7)

    html = write_report(work_dir).read_text('utf-8')
    for accuracy in ('0.95', '0.62', '0.84'):
        assert f'<td>{accuracy}</td>' in html
    assert 'No accuracy was found for flops_0.75.' in html
    assert NO_ACCURACY not in html and '0.11' not in html
    assert (work_dir / 'report' / 'accuracy.png').is_file()


def test_tests_in_a_folder_of_folders(tmp_path, pruned):
    """As those of the quickstart; the baseline was validated as it trained."""
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    slim = work_dir / 'flops_0.50.pth'
    base = tmp_path / 'baseline' / 'epoch_4.pth'
    base.parent.mkdir()
    for path in (slim, base):
        path.touch()
    leave_run(work_dir / '20260102_000000', base, steps(10, flops=0.8))
    leave_run(
        base.parent / '20260101_000000',
        None,
        (*steps(10), dict(acc=0.8, step=3), *steps(20), dict(acc=0.9, step=4)),
    )
    (base.parent / 'last_checkpoint').write_text(str(base))
    tested = tmp_path / 'test' / 'pruned' / '20260105_000000'
    leave_run(tested, slim, tested=dict(acc=0.62))

    def found():
        return {
            network.name: [e.metrics['acc'] for e in network.evaluations]
            for network in read_pruning_run(work_dir).networks
        }

    assert found() == {
        'baseline': [0.9],
        'flops_0.75': [],
        'flops_0.50': [0.62],
    }
    # a later checkpoint was validated, not the one that was pruned
    (base.parent / 'last_checkpoint').write_text('epoch_5.pth')
    (base.parent / 'epoch_5.pth').touch()
    assert found()['baseline'] == []


def test_runs_of_others_are_not_read(tmp_path, pruned, monkeypatch):
    """They may be large, damaged, or not be runs at all."""
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    slim = work_dir / 'flops_0.50.pth'
    torch.save(dict(state_dict={}), slim)
    leave_run(tmp_path / 'ours' / '20260101_000000', slim, tested=dict(acc=1))
    others = tmp_path / 'others'
    leave_run(others / '20260101_000000', None, steps(1, 2))
    leave_run(others / '20260102_000000', 'a\0b', steps(1, 2))
    leave_run(others / '20260103_000000', 'a' * 5000, tested=dict(acc=2))
    damaged = {
        'binary': b'\xff\xfe\x00load_from',
        'nested': b'load_from = ' + b'(' * 100_000,
        'large': f'load_from = {str(slim)!r}\n'.encode() + b' ' * 20_000_000,
    }
    for i, content in enumerate(damaged.values()):
        folder = others / f'2026020{i}_000000'
        leave_run(folder, slim, steps(1), tested=dict(acc=3))
        (folder / 'vis_data' / 'config.py').write_bytes(content)
    leave_run(others / '20260301_000000', slim)
    (others / '20260301_000000' / 'vis_data' / 'config.py').unlink()
    (others / '20260301_000000' / 'vis_data' / 'config.py').mkdir()
    read = []
    lines = workdir._json_lines
    monkeypatch.setattr(
        workdir, '_json_lines', lambda path: read.append(path) or lines(path)
    )
    run = read_pruning_run(work_dir)
    (found,) = run.networks[-1].evaluations
    assert found.metrics == dict(acc=1)
    assert {path.relative_to(tmp_path).parts[0] for path in read} == {'ours'}


def test_lines_of_scalars_that_tell_no_step(tmp_path):
    leave_run(tmp_path / '20260101_000000', None, (dict(iter=1), *steps(2)))
    assert join_scalars(read_runs(tmp_path)) == [*steps(2)]


@pytest.mark.parametrize('of_all', [True, False])
def test_of_latency(tmp_path, pruned, of_all):
    """Drawn against it, where it is known of all networks."""
    work_dir = tmp_path / 'prune'
    work_dir.mkdir()
    content = json.loads((pruned[0] / 'flops_0.50.json').read_text())
    content['cost']['before']['latency'] = 10.0
    content['cost']['after']['latency'] = 6.0
    (work_dir / 'latency_0.60.json').write_text(json.dumps(content))
    slim = work_dir / 'latency_0.60.pth'
    base = tmp_path / 'base.pth'
    checkpoint = dict(state_dict={})
    if not of_all:  # pruned before, without a table
        content['cost']['after'].pop('latency')
        checkpoint['mmgfp_structure'] = content
    for path in (slim, base):
        torch.save(checkpoint, path)
    leave_run(
        work_dir / '20260101_000000',
        base,
        steps(10, flops=0.8, latency=0.9, channels_pruned=2),
    )
    leave_run(work_dir / '20260102_000000', slim, tested=dict(acc=0.6))
    html = write_report(work_dir).read_text('utf-8')
    against = 'latency' if of_all else 'flops'
    assert f'acc against remaining {against}' in html
    assert (work_dir / 'report' / 'accuracy.png').is_file()


def test_of_folders_that_were_moved_together(tmp_path, pruned):
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    leave_run(
        tmp_path / 'tests' / '20260101_000000',
        '/gone/prune/flops_0.50.pth',
        tested=dict(acc=0.5),
    )
    leave_run(
        tmp_path / 'tests' / '20260102_000000',
        '/gone/another/flops_0.50.pth',
        tested=dict(acc=0.1),
    )
    run = read_pruning_run(work_dir)
    assert [len(n.evaluations) for n in run.networks] == [0, 0, 1]
    assert run.networks[2].evaluations[0].metrics == dict(acc=0.5)


def test_validation_of_the_network_that_was_saved(tmp_path):
    """Of the very iteration that reached the ratio, where that is told."""
    train(
        tmp_path,
        hook=dict(interval=4, prune_share=0.5, after_target='train'),
        **validated(),
        train_dataloader=dict(
            loader(), sampler=dict(type='InfiniteSampler', shuffle=True)
        ),
        train_cfg=dict(by_epoch=False, max_iters=16, val_interval=4),
        default_hooks=dict(
            logger=dict(
                type='LoggerHook', interval=1, log_metric_by_epoch=False
            )
        ),
        log_processor=dict(by_epoch=False),
    )
    run = read_pruning_run(tmp_path)
    assert [found.of for found in run.evaluations] == [
        f'iteration {i}' for i in (4, 8, 12, 16)
    ]
    iteration = run.ratios[-1].scores.iteration
    (found,) = run.networks[-1].evaluations
    assert found is run.evaluations[iteration // 4 - 1]
    accuracy = found.metrics['toy/accuracy']
    html = write_report(tmp_path).read_text('utf-8')
    assert f'<td>{accuracy:.4g}</td>' in html


def test_validation_at_an_unknown_iteration(tmp_path):
    """By epochs it may be that of a network that has trained on."""
    train(tmp_path, **validated())
    run = read_pruning_run(tmp_path)
    assert [found.of for found in run.evaluations] == [
        f'epoch {i}' for i in (1, 2, 3)
    ]
    assert not any(network.evaluations for network in run.networks)
    assert run.metric == 'toy/accuracy'


# -- predictions ------------------------------------------------------------


class Detector(nn.Module):
    """Sees two boxes; the surer one comes last."""

    def test_step(self, data):
        (picture,) = data['img']
        assert picture.shape == (40, 60, 3)
        sample = BaseDataElement()
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[1.0, 2, 9, 9], [10, 5, 30, 30]]),
            scores=torch.tensor([0.2, 0.9]),
            labels=torch.tensor([1, 0]),
        )
        return [sample]


class Classifier(nn.Module):
    def test_step(self, data):
        sample = BaseDataElement()
        label, scores = torch.tensor([2]), torch.tensor([0.1, 0.2, 0.7])
        sample.pred_label, sample.pred_score = label, scores
        if find_spec('mmpretrain') is None:  # as MMClassification has them
            sample.pred_label = LabelData(label=label, score=scores)
        return [sample]


class Segmentor(nn.Module):
    def test_step(self, data):
        return [BaseDataElement()]


LOADING = Config(
    dict(
        test_dataloader=dict(
            dataset=dict(
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True),
                ]
            )
        )
    )
)


@pytest.fixture
def photo(tmp_path) -> str:
    path = str(tmp_path / 'photo.png')
    cv2.imwrite(path, np.full((40, 60, 3), 200, np.uint8))
    return path


def drawn(model, scope, kind, photo, folder, classes=(), threshold=0.3):
    """The pixels that change when a prediction is drawn."""
    pytest.importorskip(scope)
    config = Config(
        dict(
            visualizer=dict(
                type=f'{scope}.{kind}',
                vis_backends=[dict(type='LocalVisBackend')],
                name='visualizer',
            )
        )
    )
    (sample,) = predict(model, LOADING, [photo])
    visualizer = build_visualizer(config, classes)
    path = folder / 'drawn.png'
    draw_prediction(visualizer, photo, sample, threshold, path)
    assert not (folder / 'vis_data').exists()
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (400, 600, 3)
    return abs(pixels[5::10, 5::10] - 200).max(2) > 20


def test_boxes(photo, tmp_path):
    """As MMDetection draws them: at (1, 2, 9, 9) and (10, 5, 30, 30)."""

    def at(threshold):
        changed = drawn(
            Detector(), 'mmdet', 'DetLocalVisualizer', photo, tmp_path,
            ('cat', 'dog'), threshold,
        )  # fmt: skip
        # the lower edges, which no label covers
        return changed[9, 3:8].all(), changed[30, 12:28].all()

    assert at(0.1) == (True, True)
    assert at(0.5) == (False, True)
    assert at(0.95) == (False, False)


def test_class(photo, tmp_path):
    """As MMPretrain, or MMClassification before it, writes it."""
    scope, kind = 'mmpretrain', 'UniversalVisualizer'
    if find_spec('mmpretrain') is None:
        scope, kind = 'mmcls', 'ClsVisualizer'
    changed = drawn(Classifier(), scope, kind, photo, tmp_path, 'abc')
    assert changed[:20].any() and not changed[25:].any()


def test_large_pictures(tmp_path):
    pytest.importorskip('mmdet')
    photo = str(tmp_path / 'large.png')
    cv2.imwrite(photo, np.zeros((300, 2000, 3), np.uint8))
    config = Config(dict(visualizer=dict(type='mmdet.DetLocalVisualizer')))
    draw_prediction(
        build_visualizer(config, ()),
        photo,
        BaseDataElement(),
        0.3,
        tmp_path / 'drawn.png',
    )
    assert image.imread(tmp_path / 'drawn.png').shape[:2] == (90, 600)


def test_what_cannot_be_drawn(photo):
    with pytest.raises(ValueError, match='without predictions'):
        predict(Segmentor(), LOADING, [photo])
    with pytest.raises(ValueError, match='no test pipeline'):
        predict(Detector(), Config(), [photo])
    for settings in ({}, dict(visualizer=dict(type='Nobody'))):
        with pytest.raises(ValueError, match='no visualizer'):
            build_visualizer(Config(settings), ())


def test_predictions_of_a_run(tmp_path, photo, monkeypatch):
    """Of the baseline and of the slim network, each with its own weights."""
    pytest.importorskip('mmdet')
    base = tmp_path / 'base.pth'
    runner = train(tmp_path / 'base', custom_hooks=[])
    torch.save(dict(state_dict=runner.model.state_dict()), base)
    backends = [dict(type='LocalVisBackend')]
    visualizer = dict(type='mmdet.DetLocalVisualizer', vis_backends=backends)
    train(tmp_path / 'prune', load_from=str(base), visualizer=visualizer)
    loaded = []

    def noting(model, config, paths):
        loaded.append(model)
        return predict(Detector(), LOADING, paths)

    monkeypatch.setattr(mmgfp.report.page_predictions, 'predict', noting)
    html = write_report(tmp_path / 'prune').read_text('utf-8')
    assert 'are not on this machine' in html  # the toy data are no files
    out = write_report(tmp_path / 'prune', images=Path(photo).parent)
    assert 'of the baseline and of flops_0.50 ' in out.read_text('utf-8')
    for name in ('baseline', 'flops_0.50'):
        png = tmp_path / f'prune/report/predictions_0_{name}.png'
        assert png.is_file()
    slim = load(tmp_path / 'prune' / 'flops_0.50.pth')['state_dict']
    for model, weights in zip(loaded, (load(base)['state_dict'], slim)):
        for name, tensor in model.state_dict().items():
            assert tensor.equal(weights[name]), name

    base.unlink()
    html = write_report(tmp_path / 'prune').read_text('utf-8')
    assert 'is not on this machine' in html


# -- mistakes ---------------------------------------------------------------


def test_mistakes(tmp_path, pruned):
    with pytest.raises(FileNotFoundError, match='expected the work dir'):
        write_report(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match=r'such as flops_0\.50\.json'):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'pictures'"):
        write_report(pruned[0], tmp_path / 'a.html', 'pictures')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'flops_0.50.json').write_text('{')
    with pytest.raises(ValueError, match='is damaged'):
        write_report(tmp_path)


def test_tool(tmp_path, pruned):
    work_dir = copy_structures(pruned[0], tmp_path / 'prune')
    done = run_tool('report.py', work_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(work_dir / 'report.html')
    done = run_tool('report.py', tmp_path)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # libraries may warn before
    assert line.startswith('error: there is no structure of')
    assert 'Traceback' not in done.stderr


def test_argument_of_the_hook():
    with pytest.raises(ValueError, match="report='yes'"):
        FisherPruningHook(target=dict(flops=0.5), report='yes')
    assert not FisherPruningHook(target=dict(flops=0.5)).report


def test_a_page_that_fails_harms_no_training(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full\nand more')

    monkeypatch.setattr(mmgfp.report.page, 'write_report', fail)
    train(tmp_path, hook=dict(report=True))
    assert (tmp_path / 'flops_0.50.pth').is_file()
    (log,) = tmp_path.glob('*/*.log')
    warnings = [
        line for line in log.read_text().splitlines() if 'report' in line
    ]
    assert len(warnings) == 1
    assert warnings[0].endswith('was not written: OSError: disk full')
    assert not (tmp_path / 'report.html').exists()


def test_no_page_unless_asked(tmp_path):
    train(tmp_path)
    assert not (tmp_path / 'report.html').exists()


def test_logs_that_are_nested_without_end(tmp_path):
    folder = tmp_path / '20260101_000000'
    (folder / 'vis_data').mkdir(parents=True)
    lines = ['[' * 100_000, '9' * 10_000, '{"iter": 1, "step": 1}']
    (folder / 'vis_data' / 'scalars.json').write_text('\n'.join(lines))
    nested = f'seed = {"-" * 100_000}1'
    (folder / 'vis_data' / 'config.py').write_text(nested)
    (run,) = read_runs(tmp_path)
    assert run.records == [{'iter': 1, 'step': 1}]
    assert run.config == {}


# -- charts -----------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch) -> list:
    drawn: list = []
    monkeypatch.setattr(charts, 'save_figure', lambda f, _: drawn.append(f))
    return drawn


@pytest.mark.parametrize('decades', [0.3, 2, 6, 20])
def test_labels_of_scores_have_room(figures, decades):
    values = np.logspace(-decades, 0, 9)
    scores = SimpleNamespace(
        groups={'conv': None},
        last_step=lambda _: (values, values < values.mean()),
        normalize_by='none',
        criterion='Fisher',
    )
    charts.draw_scores(scores, 'scores.png')
    (figure,) = figures
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = [t for t in axes.get_xticks() if low <= t <= high]
    assert 1 <= len(ticks) <= 9


def test_progress_without_costs_has_the_loss(figures):
    records = [dict(step=s, iter=s, loss=1 / s) for s in (1, 2, 3)]
    charts.draw_progress(records, {}, 'progress.png')
    cost, loss = figures[0].axes
    assert not cost.lines and not figures[0].legends
    assert loss.lines[0].get_ydata().tolist() == [1, 1 / 2, 1 / 3]
    charts.draw_progress([dict(r, flops=0.5) for r in records], {}, 'x.png')
    labels = [text.get_text() for text in figures[1].legends[0].get_texts()]
    assert labels == ['flops']
