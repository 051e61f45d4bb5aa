"""The harness of the accuracy experiments, on a few made-up images."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from processes import ROOT, command, environment
from pruning import pruner_of
from stack import CLASSIFICATION, require
from torch import nn

from mmgfp.cost.model import record_calls
from mmgfp.criteria.magnitude import Random

if CLASSIFICATION != 'mmpretrain':
    pytest.skip('the experiments need mmpretrain', allow_module_level=True)

HARNESS = ROOT / 'benchmarks' / 'accuracy'
sys.path.insert(0, str(HARNESS))

# names of configs
UNPRUNED = ('baseline', 'unpruned')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Four classes, eight images each; a config of few and narrow layers."""
    folder = tmp_path_factory.mktemp('accuracy')
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in range(4):
            path = folder / split / f'class{label}'
            path.mkdir(parents=True)
            for i in range(8):
                image = rng.integers(0, 60, (32, 32, 3)) + 60 * label
                cv2.imwrite(str(path / f'{i}.png'), image.astype(np.uint8))
    return folder


def configured(folder: Path, name: str) -> Path:
    path = folder / f'{name}.py'
    path.write_text(
        f'_base_ = [{str(HARNESS / "configs/cifar10" / name)!r} + ".py"]\n'
        'model = dict(backbone=dict(depth=8), head=dict(num_classes=4))\n'
        'data_preprocessor = dict(num_classes=4)\n'
        'train_dataloader = dict(batch_size=8)\n'
        + ('' if name in UNPRUNED else 'pruning = dict(interval=1)\n')
        + 'baseline = dict(epochs=2)\n'
        'prune = dict(epochs=3)\n'
        'finetune = dict(epochs=1)\n'
    )
    return path


@pytest.mark.parametrize(
    'path', sorted(HARNESS.glob('configs/[!_]*/[!_]*.py')), ids=str
)
def test_configs(path):
    """Each makes a network that its hook prunes, but for the unpruned."""
    if 'bccd' in path.parent.name:
        require('mmdet')
    if 'torch_pruning' in path.stem:
        pytest.importorskip('torch_pruning')
    from mmengine.registry import HOOKS

    from mmgfp.libraries.config import load_config
    from mmgfp.libraries.models import build_model

    config = load_config(path)
    assert build_model(config).training is False
    assert (config.pruning is None) == path.stem.startswith(UNPRUNED)
    phases = ['baseline'] if path.stem == 'baseline' else ['prune', 'finetune']
    assert config.train_phases == phases
    if config.pruning is not None:
        HOOKS.build(config.pruning)
        share = 0.3 if '0.3' in path.stem else 0.5
        assert config.pruning.target == dict(flops=share)
    for name in ('title', 'metric', 'commands', 'input_shape', 'rates'):
        assert config[name]


@pytest.fixture(scope='module')
def report():
    # tools/ has a report.py, too
    spec = spec_from_file_location('accuracy_report', HARNESS / 'report.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page(report, tmp_path, monkeypatch):
    """Rates, means, spreads and pairs, reckoned by hand."""

    def result(
        name, seed, lr, top1, flops=0.5, acts=0.25, channels=1, epochs=3
    ):
        pruned = not name.startswith(UNPRUNED)
        return dict(
            experiment=name,
            seed=seed,
            baseline_seed=2 if seed == 2 else 0,
            lr=lr,
            pruning=dict(target=dict(flops=0.5)) if pruned else None,
            phases={
                key: dict(epochs=epochs, lr=rate)
                for key, rate in (('prune', 0.02), ('finetune', lr))
            },
            pruned={'accuracy/top1': top1 - 10},
            finetuned={'accuracy/top1': top1},
            shares=dict(flops=flops, acts=acts, params=0.125),
            cost=dict(flops=5e8, acts=2e6, params=1234567),
            widths={'backbone.conv1': (channels, 4)},
            machine=dict(
                device='a pocket calculator',
                threads='1',
                python='3',
                mmgfp='0',
                date=f'2026-01-0{seed + 2}',
            ),
        )

    results = [
        result('baseline', 0, 0.1, 90.0),
        result('unpruned', 0, 0.1, 91.0),
        result('unpruned', 0, 0.2, 90.5),
        result('fisher_acts', 0, 0.1, 80.0),
        result('fisher_acts', 0, 0.2, 84.0),
        result('fisher_acts', 1, 0.2, 86.0, flops=0.4),
        result('torch_pruning_l1', 0, 0.1, 83.0),
        result('torch_pruning_l1', 0, 0.2, 82.0),
        result('torch_pruning_l1', 1, 0.1, 86.5),
        result('fisher_internal', 0, 0.1, 85.5, acts=0.3),
        result('fisher_none', 0, 0.1, 85.2, acts=0.5, channels=2),
        result('unpruned_long', 0, 0.2, 92.5, epochs=9),
        result('ablation_interval_2', 0, 0.2, 88.0),
        result('ablation_running_scores', 1, 0.2, 87.0),
        result('torch_pruning_fpgm', 0, 0.2, 79.0, epochs=30),
    ]
    # time is four times the acts
    shares = {one['experiment']: one['shares']['acts'] for one in results}
    networks = {
        name: dict(
            ms=dict(median=12.345),
            ratio=dict(median=4 * acts, least=0, most=9),
        )
        for name, acts in shares.items()
        if 'unpruned' not in name
    }
    timing = dict(backend='eager', batch=8, networks=networks)
    timed = dict(
        rounds=3,
        machine=dict(threads='2', device='an abacus', date='2026-01-01'),
        times=[timing, dict(timing, batch=1)],
    )
    (tmp_path / 'cifar10_latency.json').write_text(json.dumps(timed))
    costs = {name: dict(flops=52, acts=31) for name in networks}
    costs['baseline'] = dict(flops=100, acts=50)
    timed.update(round_to=16, costs=costs)
    (tmp_path / 'cifar10_latency_rounded.json').write_text(json.dumps(timed))
    scores = dict(test=84.0, anew=84.5, training=97.0)
    known = dict(experiment='unpruned', seed=3, lr=0.2, finetuned=scores)
    diagnosis = dict(machine=results[0]['machine'], networks=[known])
    (tmp_path / 'cifar10_diagnosis.json').write_text(json.dumps(diagnosis))
    timed.update(device='cuda', half=True, round_to=1)
    (tmp_path / 'cifar10_latency_cuda_half.json').write_text(json.dumps(timed))
    lines = ''.join(f'{json.dumps(one)}\n' for one in results)
    (tmp_path / 'cifar10.jsonl').write_text(lines)
    nothing_pruned = [r for r in results if r['pruning'] is None]
    lines = ''.join(f'{json.dumps(one)}\n' for one in nothing_pruned)
    (tmp_path / 'cifar10_resnet56.jsonl').write_text(lines)
    out = tmp_path / 'new/accuracy'
    arguments = ['--results', str(tmp_path), '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['report.py', *arguments])
    drawn = []
    import report_figures

    save = report_figures.save_figure
    monkeypatch.setattr(
        report_figures,
        'save_figure',
        lambda figure, path: drawn.append(figure) or save(figure, path),
    )
    report.main()
    # without the baseline, which every line would meet; flops hardly differ
    costs, speed, _ = drawn
    (legend,) = costs.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *('baseline', 'control', 'Group Fisher (mmgfp)', 'Torch-Pruning')
    ]
    for axes in speed.axes:
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ['acts left, r = 1.00', 'baseline']
    assert [page.name for page in out.glob('*.md')] == ['cifar10.md']
    page = (out / 'cifar10.md').read_text()
    # 3 epochs are not what the list has now
    assert (
        '- Control with 3 epochs of fine-tuning: 91.00; +1.00 to its '
        'baseline. **0.1**: 91.00 (0/0); 0.2: 90.50 (0/0).\n'
        '- Control with 9 epochs of fine-tuning: 92.50; '
    ) in page
    assert '`unpruned_long`' not in page
    assert '- a pocket calculator, bfloat16, 1 thread, Python 3, ' in page
    assert 'mmgfp 0, 2026-01-02 to 2026-01-03.\n' in page
    assert 'SGD, momentum 0.9, weight decay 0.0001, batches of 128.\n' in page
    assert '500.00 M flops, 1.23 M params, 2.00 M acts, at 32x32' in page
    assert '`fisher_internal` has the channels of `fisher_acts`' in page
    assert '`fisher_none` has the channels' not in page
    assert (
        '| `fisher_acts` | 2 | 75.00 (74.00 to 76.00) | '
        '85.00 (84.00 to 86.00) | -5.00 | -6.50 (1 of 2) | 45.0% | 25.0% | '
        '12.5% | 0.1: 80.00 (0/0); **0.2**: 84.00 (0/0), 86.00 (0/1) |'
    ) in page
    assert (
        '| `torch_pruning_l1` | 2 | 74.75 (73.00 to 76.50) | '
        '84.75 (83.00 to 86.50) | -5.25 | -8.00 (1 of 2) | 50.0% | 25.0% | '
        '12.5% | **0.1**: 83.00 (0/0), 86.50 (0/1); 0.2: 82.00 (0/0) |'
    ) in page
    # the control has the first seed only: 84 - 90.5, 83 - 91, at their rates;
    # 84 - 83, 86 - 86.5
    assert '`torch_pruning_l1` **+0.25** (+1.00, -0.50)' in page
    before, after = page.split('## Ablations')
    # with the seed that both have, 88 - 84
    assert (
        '| `ablation_interval_2` | 1 | 78.00 | 88.00 | -2.00 | +4.00 | 50.0% |'
        in after
    )
    assert '- `ablation_running_scores`: Scores are not reset by a ' in after
    assert '- `ablation_interval_2`' not in after  # which its name explains
    # the control was trained for less
    assert (
        '| `torch_pruning_fpgm` | 1 | 69.00 | 79.00 | -11.00 |  | 50.0% |'
        in before
    )
    assert '`ablation_interval_2` |' not in before
    tables, lost = page.split('## On test and on training pictures')
    assert 'without augmentation (a pocket calculator, 1 thread' in lost
    assert '`unpruned`' not in tables
    assert '| `unpruned` | 3 | 0.2 |  |  |  | 84.00 | 84.50 | 97.00 |' in lost
    exact, gpu, rounded = re.split('## Latency .*', page)
    assert '## Latency with multiples of 16 channels\n' in page
    assert '## Latency on a GPU in half precision\n' in page
    assert 'of a picture; 2 threads of an abacus, 2026' in rounded
    # ratios of 1.0, 1.0, 2.0, 1.2 and so on lie between 0 and 9
    assert 'of 3 rounds in turn, of which the furthest lies 8.00 off' in exact
    assert 'of a picture; an abacus, 2026' in gpu
    assert '| `baseline` | 1.00 (12.3 ms) | 1.00 (12.3 ms) |' in gpu
    assert '| `fisher_internal` | 1.20 | 1.20 |' in gpu
    assert '| `fisher_internal` | 1.20 | 1.20 |' in exact
    assert '| `fisher_internal` | 52.0% | 62.0% | 1.20 | 1.20 |' in rounded
    for name in ('cifar10', 'cifar10_speed', 'cifar10_kept'):
        picture = out / f'{name}.png'
        assert picture.read_bytes()[1:4] == b'PNG'


def test_committed_pages(report, tmp_path, monkeypatch):
    """They are what the results give."""
    monkeypatch.setattr(sys, 'argv', ['report.py', '--out', str(tmp_path)])
    for name in ('draw', 'draw_speed', 'draw_kept'):
        monkeypatch.setattr(report, name, lambda *args: None)
    report.main()
    made = sorted(tmp_path.glob('*.md'))
    assert len(made) == 5
    for page in made:
        committed = ROOT / 'docs/accuracy' / page.name
        assert page.read_text() == committed.read_text()


def test_machines(report):
    """Of each baseline, and others on which runs began with it."""

    def run(experiment, baseline, seed, device, day):
        machine = dict(device=device, threads='1', python='3', mmgfp='0')
        machine['date'] = f'2026-01-0{day}'
        return dict(
            experiment=experiment,
            baseline_seed=baseline,
            seed=seed,
            machine=machine,
        )

    first = [
        run('unpruned', 0, 1, 'an abacus', 2),
        run('baseline', 0, 0, 'an abacus', 1),
    ]
    (line,) = report.machines(first)
    # the first runs do not say in what
    assert line.startswith('an abacus, bfloat16, 1 thread, ')
    assert line.endswith('2026-01-01 to 2026-01-02.')
    other = run('baseline', 4, 5, 'a slide rule', 3)
    other['precision'] = 'float32'
    (alone,) = report.machines([other])
    assert alone.startswith('a slide rule, float32, ')
    elsewhere = run('unpruned', 0, 7, 'a pencil', 3)
    found = report.machines([elsewhere, other, *first])
    assert [found[0], found[2]] == [
        f'Baseline of seed 0 and runs of seed 1: {line}',
        f'Baseline of seed 4: {alone}',
    ]
    assert found[1].startswith(
        'With the baseline of seed 0, runs of seed 7: a pencil, '
    )


def test_stages(report):
    from results import Summary

    widths = {
        'backbone.conv1': (1, 4),
        'backbone.layer1.0.conv1': (2, 4),
        'backbone.layer1.1.conv2': (4, 4),
        'neck.lateral_convs.0.conv': (1, 2),
        'neck.fpn_convs.0.conv': (2, 2),
        'bbox_head.cls_convs.3.conv': (3, 4),
    }
    runs = [dict(widths=widths), dict(widths={'backbone.conv1': (3, 4)})]
    summary = Summary('fisher_acts', 0.1, runs, {}, {}, {})
    assert report.kept_by_stage(summary) == {
        'backbone.conv1': 0.5,
        'backbone.layer1 inner': 0.5,
        'backbone.layer1 stream': 1.0,
        'neck': 0.75,
        'bbox_head.cls_convs': 0.75,
    }


def public_weights(folder: Path) -> Path:
    """Under the names of the public checkpoints, without shortcuts."""
    import models

    torch.manual_seed(0)
    backbone = models.CifarResNet(8).state_dict()
    weights = {
        f'module.{name}': tensor
        for name, tensor in backbone.items()
        if 'shortcut' not in name
    }
    weights['module.linear.weight'] = torch.randn(4, 64)
    weights['module.linear.bias'] = torch.zeros(4)
    path = folder / 'public.th'
    torch.save(dict(state_dict=weights), path)
    return path


@pytest.fixture(scope='module')
def baseline(folder):
    import experiment

    out = folder / 'baseline'
    experiment.main(
        [
            *(str(configured(folder, 'baseline')), '--data-root', str(folder)),
            *('--load-from', str(public_weights(folder)), '--out', str(out)),
        ]
    )
    return out


def test_baseline(folder, baseline):
    """Its score before training is that of the public weights."""
    import experiment

    result = json.loads((baseline / 'result.json').read_text())
    assert result['shares'] == dict(flops=1, params=1, acts=1)
    assert result['lr'] == 0.02
    model, data = scored_images(folder)
    experiment.load(model, str(folder / 'public.th'))
    found = model.val_step(data)
    right = [bool(s.pred_label == s.gt_label) for s in found]
    assert result['pruned']['accuracy/top1'] == 100 * sum(right) / len(right)
    assert (baseline / 'model.pth').exists()


def scored_images(folder, split='test'):
    """The network of the config and all images of a split, as one batch."""
    import experiment
    from mmengine.runner import Runner

    from mmgfp.libraries.models import build_model

    config = experiment.read_config(
        experiment.parse_args(
            [
                *(str(configured(folder, 'baseline')), '--data-root'),
                *(str(folder), '--out', str(folder)),
            ]
        )
    )
    config.test_dataloader.dataset.folder = str(folder / split)
    loader = Runner.build_dataloader(config.test_dataloader)
    (batch,) = list(loader)
    return build_model(config), batch


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('baseline', [0.02] * 2),
        ('unpruned', [0.005] * 3 + [0.01]),
        ('fisher_acts', [0.005] * 3 + [0.01]),
    ],
)
def test_phases(folder, baseline, tmp_path, monkeypatch, name, expected):
    """The weights they begin with, the rate of every epoch, the record."""
    import experiment

    seen, begun = [], []
    make = experiment.make_runner

    def watched(config, model):
        runner = make(config, model)
        runner.register_hook(Watch(), priority='HIGHEST')
        return runner

    class Watch(Hook):
        def before_train(self, runner):
            begun.append(copy.deepcopy(runner.model.state_dict()))

        def before_train_epoch(self, runner):
            (rate,) = {g['lr'] for g in runner.optim_wrapper.param_groups}
            seen.append(rate / self.factor(runner))

        @staticmethod
        def factor(runner):
            """Of the cosine, which falls in every iteration."""
            if not runner.param_schedulers:
                return 1.0
            return (1 + np.cos(np.pi * runner.iter / runner.max_iters)) / 2

    monkeypatch.setattr(experiment, 'make_runner', watched)
    experiment.main(
        [
            *(str(configured(folder, name)), '--data-root', str(folder)),
            *('--load-from', str(baseline / 'model.pth'), '--lr', '0.01'),
            *('--out', str(tmp_path)),
        ]
    )
    assert seen == pytest.approx(expected)
    loaded = torch.load(baseline / 'model.pth', weights_only=True)
    for key, tensor in loaded['state_dict'].items():
        torch.testing.assert_close(begun[0][key], tensor, rtol=0, atol=0)
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['lr'] == expected[-1]
    assert (result['pruning'] is None) == (name != 'fisher_acts')


@pytest.mark.parametrize('wrong', ['missing', 'unknown'])
def test_weights_that_do_not_fit(folder, baseline, tmp_path, wrong):
    import experiment

    weights = torch.load(folder / 'public.th', weights_only=True)['state_dict']
    if wrong == 'missing':
        del weights['module.conv1.weight']
    else:
        weights['module.conv9.weight'] = torch.zeros(1)
    torch.save(dict(state_dict=weights), tmp_path / 'other.th')
    model, _ = scored_images(folder)
    with pytest.raises(SystemExit, match=rf'CifarResNet.*{wrong} \['):
        experiment.load(model, str(tmp_path / 'other.th'))


@pytest.mark.parametrize('supported', [True, False])
def test_precision(monkeypatch, supported):
    """Nothing is emulated, which is slower than float32."""
    import precision

    monkeypatch.setattr(precision, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(
        torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: supported
    )
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    wrapper = precision.FastestOptimWrapper(optimizer)
    with wrapper.optim_context(layer):
        made = layer(torch.zeros(1, 2)).dtype
    assert made == (torch.bfloat16 if supported else torch.float32)
    assert precision.precision() == str(made).removeprefix('torch.')
    monkeypatch.setattr(precision, 'get_device', lambda: 'cuda')
    assert precision.precision() == 'float32'  # mmcv's focal loss, 2.3.6


def test_images(tmp_path):
    """Kept decoded until one comes or goes; one that is none is named."""
    import data

    def images(values):
        for i, value in enumerate(values):
            image = np.full((4, 4, 3), value, np.uint8)
            cv2.imwrite(str(tmp_path / f'train/cat/{i}.png'), image)

    def read():
        dataset = data.ImageFolders(str(tmp_path / 'train'), pipeline=[])
        return [int(one['img'][0, 0, 0]) for one in dataset]

    (tmp_path / 'train/cat').mkdir(parents=True)
    images([10, 20])
    assert read() == [10, 20]
    kept = tmp_path / 'train.npz'
    before = kept.stat().st_mtime_ns
    assert read() == [10, 20]
    assert kept.stat().st_mtime_ns == before
    images([10, 20, 30])
    os.utime(kept, (0, 0))  # clocks of files are coarse
    assert read() == [10, 20, 30]
    broken = tmp_path / 'train/cat/3.png'
    broken.write_text('<html>')
    os.utime(kept, (0, 0))
    with pytest.raises(ValueError, match=r'3\.png is no image'):
        read()


def test_decoding_twice_at_once(tmp_path, monkeypatch):
    """Lists of the same pictures that begin together do not disturb."""
    import data

    (tmp_path / 'train/cat').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'train/cat/0.png'), np.zeros((4, 4, 3)))
    save, both = np.savez, []

    def while_another_writes(file, **arrays):
        if not both:
            both.append(file)
            read()
        save(file, **arrays)

    def read():
        return len(data.ImageFolders(str(tmp_path / 'train'), pipeline=[]))

    monkeypatch.setattr(np, 'savez', while_another_writes)
    assert read() == 1
    assert both
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == ['train', 'train.npz']


def test_cropped_batches(tmp_path):
    """Every image is a crop of its own, half of them mirrored."""
    import data
    from mmengine.runner import Runner

    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (2, 6, 5, 3), np.uint8)
    for label, image in enumerate(images):
        (tmp_path / f'train/{label}').mkdir(parents=True)
        cv2.imwrite(str(tmp_path / f'train/{label}/0.png'), image)
    dataset = data.CroppedBatches(str(tmp_path / 'train'), padding=1)
    loader = Runner.build_dataloader(
        dict(
            dataset=dataset,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='as_it_is'),
        )
    )
    seen = set()
    np.random.seed(0)
    for _ in range(300):
        [batch] = loader
        labels = batch['data_samples'][0].gt_label.tolist()
        assert sorted(labels) == [0, 1]
        for label, found in zip(labels, batch['inputs'].numpy()):
            padded = np.zeros((8, 7, 3), np.uint8)
            padded[1:7, 1:6] = images[label]
            crops = {
                (top, left, mirrored): padded[top : top + 6, left : left + 5][
                    :, :: -1 if mirrored else 1
                ]
                for top in range(3)
                for left in range(3)
                for mirrored in (False, True)
            }
            [way] = [
                way
                for way, crop in crops.items()
                if (crop == found.transpose(1, 2, 0)).all()
            ]
            seen.add((label, *way))
    assert len(seen) == 2 * 3 * 3 * 2


def test_losses_of_cropped_batches(folder):
    """As those of one sample for each image."""
    from mmengine.config import Config
    from mmpretrain.structures import DataSample

    from mmgfp.libraries.models import build_model

    path = HARNESS / 'configs/cifar10_resnet56/baseline.py'
    model = build_model(Config.fromfile(path)).eval()
    labels = torch.tensor([3, 1, 3, 7])
    inputs = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    losses = [
        model(
            **model.data_preprocessor(
                dict(inputs=inputs, data_samples=samples), True
            ),
            mode='loss',
        )['loss'].item()
        for samples in (
            [DataSample().set_gt_label(labels)],
            [DataSample().set_gt_label(label) for label in labels],
        )
    ]
    assert losses[0] == losses[1]


def test_shortcuts_begin_as_option_a(folder):
    import models

    block = models.Block(4, 8, 2)
    torch.nn.init.zeros_(block.bn2.weight)  # only the shortcut is left
    x = torch.rand(1, 4, 6, 6)
    expected = torch.zeros(1, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    'name', ['fisher_acts', 'ours_taylor', 'ours_l1', 'torch_pruning_taylor']
)
def test_one_experiment(folder, baseline, name):
    if 'torch_pruning' in name:
        pytest.importorskip('torch_pruning')
    import experiment

    out = folder / name
    experiment.main(
        [
            *(str(configured(folder, name)), '--data-root', str(folder)),
            *('--load-from', str(baseline / 'model.pth'), '--lr', '0.01'),
            *('--out', str(out), '--seed', '1'),
        ]
    )
    result = json.loads((out / 'result.json').read_text())
    assert (result['seed'], result['lr']) == (1, 0.01)
    assert 0.3 < result['shares']['flops'] <= 0.5
    assert result['phases']['finetune'] == dict(epochs=1, lr=0.01)
    weights = torch.load(out / 'model.pth', weights_only=True)['state_dict']
    params = sum(
        tensor.numel()
        for key, tensor in weights.items()
        if key.endswith(('weight', 'bias'))
    )
    assert params == result['cost']['params']


@pytest.mark.parametrize(
    'path', sorted(HARNESS.glob('configs/cifar10/torch_pruning*.py')), ids=str
)
def test_torch_pruning(folder, path):
    """Its pace is that of mmgfp, and momentum goes with the channels."""
    pytest.importorskip('torch_pruning')
    from mmengine.registry import HOOKS

    from mmgfp.libraries.config import load_config
    from mmgfp.libraries.models import build_model

    torch.manual_seed(0)
    config = load_config(configured(folder, path.stem))
    model = build_model(config).train()
    for weight in model.parameters():
        nn.init.uniform_(weight, -0.5, 0.5)  # no two channels are equal
    hook = HOOKS.build(dict(config.pruning, interval=2))
    target = config.pruning.target.flops

    def wrap(settings):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return SimpleNamespace(optimizer=optimizer)

    runner = SimpleNamespace(
        model=model,
        max_iters=8,
        cfg=config,
        optim_wrapper=wrap(None),
        build_optim_wrapper=wrap,
    )
    hook.before_train(runner)
    full = hook.flops(model)
    _, batch = scored_images(folder)
    left = []
    for runner.iter in range(8):
        # three times the weights is a momentum that is easy to recognise
        state = runner.optim_wrapper.optimizer.state
        for weight in model.parameters():
            state[weight]['momentum_buffer'] = 3 * weight.detach()
        hook.after_train_iter(runner, runner.iter, batch)
        left.append(hook.flops(model) / full)
        state = runner.optim_wrapper.optimizer.state
        for weight in model.parameters():
            momentum = state[weight]['momentum_buffer']
            torch.testing.assert_close(momentum, 3 * weight.detach())
    gone = 1 - target
    for done, share in enumerate(left, 1):
        goal = 1 - gone * (done // 2) / 4
        # a channel of the first stage is 1/16 of its flops, and two may go
        assert goal - 0.12 <= share <= goal + 1e-9


class Driver:
    """The driver with experiments that end at once."""

    def __init__(self, folder, monkeypatch):
        import run

        self.folder, self.module = folder, run
        self.results = folder / 'cifar10.jsonl'
        self.began = []
        self.stop = 0  # is interrupted after so many
        self.failing = ()  # names of experiments
        self.baseline = 90.0

        def start(experiments, job):
            self.began.append(job)
            self.write(experiments._folder(job), *job)
            if len(self.began) == self.stop:
                raise KeyboardInterrupt
            return SimpleNamespace(
                returncode=int(job[0] in self.failing),
                poll=lambda: 0,
                terminate=lambda: None,
                wait=lambda: 0,
            )

        monkeypatch.setattr(run.Experiments, '_start', start)
        monkeypatch.setattr(run.time, 'sleep', lambda seconds: None)
        self.set_arguments = lambda words: monkeypatch.setattr(
            sys, 'argv', ['run.py', *words]
        )

    def write(self, folder, name, seed, lr):
        """What an experiment leaves."""
        folder.mkdir(parents=True)
        if name in self.failing:
            return
        (folder / 'model.pth').touch()
        top1 = self.baseline
        top1 += {'fisher_acts': lr, 'ours_l1': -lr}.get(name, 0)
        metrics = {'accuracy/top1': top1}
        result = dict(experiment=name, seed=seed, lr=lr, pruned=metrics)
        result |= dict(finetuned=metrics, shares=dict(flops=0.5))
        (folder / 'result.json').write_text(json.dumps(result))

    def run(self, *words, seeds=('0', '5'), lrs=('0.1', '0.2')):
        """``run.py`` with two experiments, unless the words say otherwise."""
        common = [
            *('cifar10', '--data-root', 'nowhere'),
            *('--seeds', *seeds, *(('--lrs', *lrs) if lrs else ())),
            *('--filter', 'fisher_acts', 'ours_l1'),
            *('--out', str(self.folder)),
            *('--work-dir', str(self.folder / 'work')),
        ]
        self.set_arguments([*common, *words])
        self.module.main()

    def names(self):
        """Of the experiments in the file, in its order."""
        lines = self.results.read_text().splitlines()
        return [json.loads(line)['experiment'] for line in lines]


@pytest.fixture
def diagnosed(folder, baseline, tmp_path, monkeypatch):
    """What diagnose.py finds of an experiment that was just made."""
    import diagnose
    import experiment

    path = configured(folder, 'fisher_acts')
    configs = tmp_path / 'configs/cifar10'
    configs.mkdir(parents=True)
    (configs / 'fisher_acts.py').write_text(f'_base_ = [{str(path)!r}]\n')
    monkeypatch.setattr(diagnose, 'HERE', tmp_path)
    work = tmp_path / 'work/fisher_acts_seed0_lr0.01'
    experiment.main(
        [
            *(str(path), '--data-root', str(folder), '--lr', '0.01'),
            *('--load-from', str(baseline / 'model.pth'), '--out', str(work)),
        ]
    )

    def run(*words):
        args = diagnose.parse_args(
            [
                *('cifar10', '--data-root', str(folder)),
                *('--work-dir', str(work.parent), '--out', str(tmp_path)),
                *words,
            ]
        )
        diagnose.diagnose_all(args)
        file = tmp_path / 'cifar10_diagnosis.json'
        (found,) = json.loads(file.read_text())['networks']
        return found

    return SimpleNamespace(run=run, work=work, module=diagnose)


def test_diagnosis(folder, diagnosed, monkeypatch):
    """Its scores are those of the results and those counted by hand."""
    import latency
    from mmengine.config import Config

    def guess(config, model):
        # all pictures are of the first class; a quarter is
        nn.init.zeros_(model.head.fc.weight)
        model.head.fc.bias.data = torch.tensor([1.0, 0, 0, 0])

    monkeypatch.setattr(diagnosed.module, 'renew_statistics', guess)
    found = diagnosed.run('--networks', 'fisher_*')
    result = json.loads((diagnosed.work / 'result.json').read_text())
    model = latency.build(
        Config.fromfile(configured(folder, 'fisher_acts')), result
    )
    files = dict(pruned='prune/epoch_3.pth', finetuned='model.pth')
    assert set(found) == {'experiment', 'seed', 'lr', *files}
    for phase, file in files.items():
        weights = torch.load(diagnosed.work / file, weights_only=False)
        model.load_state_dict(weights['state_dict'])
        for split, key in (('test', 'test'), ('train', 'training')):
            _, batch = scored_images(folder, split)
            samples = model.val_step(batch)
            right = [bool(s.pred_label == s.gt_label) for s in samples]
            assert found[phase][key] == 100 * sum(right) / len(right)
        known = result[phase]['accuracy/top1']
        assert found[phase]['test'] == known
        assert found[phase]['anew'] == 25


def test_diagnosis_of_training_pictures(folder):
    """Those of the test remain what they were."""
    import diagnose
    import experiment

    words = [str(configured(folder, 'baseline')), '--data-root', str(folder)]
    config = experiment.read_config(
        experiment.parse_args([*words, '--out', str(folder)])
    )
    changed = diagnose.on_training(config).test_dataloader.dataset
    assert changed.folder == str(folder / 'train')
    kept = config.test_dataloader.dataset
    assert kept.folder == str(folder / 'test')
    assert changed.pipeline == kept.pipeline


def test_statistics_anew(folder):
    """Of one batch: mean and variance of what each BatchNorm gets."""
    import diagnose
    from mmengine.config import Config

    model, batch = scored_images(folder, 'train')
    config = Config.fromfile(configured(folder, 'baseline'))
    config.train_dataloader = copy.deepcopy(config.test_dataloader)
    config.train_dataloader.update(batch_size=32)
    config.train_dataloader.dataset.folder = str(folder / 'train')
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    inputs = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args: inputs.update({module: args[0].detach()})
        )
        for layer in layers
    ]
    with torch.no_grad():
        model.train()(**model.data_preprocessor(batch))
    for handle in handles:
        handle.remove()
    diagnose.renew_statistics(config, model)
    assert len(layers) > 6
    for layer in layers:
        variance, mean = torch.var_mean(inputs[layer], (0, 2, 3))
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, variance)
        assert layer.momentum == 0.1


def test_diagnosis_of_what_is_not_there(diagnosed):
    with pytest.raises(SystemExit, match=r'fischer: .*run\.py makes'):
        diagnosed.run('--networks', 'fischer')
    file = diagnosed.work / 'result.json'
    result = json.loads(file.read_text())
    result['finetuned']['accuracy/top1'] = 12.34
    file.write_text(json.dumps(result))
    with pytest.raises(RuntimeError, match=r'model\.pth .* to the 12\.34'):
        diagnosed.run()


@pytest.fixture
def driver(tmp_path, monkeypatch):
    return Driver(tmp_path, monkeypatch)


def test_order_and_resuming(driver, capsys):
    """Learning rates with the first seed, then the best with the others."""
    driver.stop = 4
    with pytest.raises(SystemExit) as ended:
        driver.run()
    assert ended.value.code == 130
    assert len(driver.names()) == 3
    shutil.rmtree(driver.folder / 'work/fisher_acts_seed0_lr0.2')
    driver.stop = 0
    driver.run()
    assert driver.began == [
        ('baseline', 0, 0.0),
        ('fisher_acts', 0, 0.1),
        ('ours_l1', 0, 0.1),
        ('fisher_acts', 0, 0.2),
        ('fisher_acts', 0, 0.2),
        ('ours_l1', 0, 0.2),
        ('fisher_acts', 5, 0.2),
        ('ours_l1', 5, 0.1),
    ]
    assert 'ours_l1_seed5_lr0.1: 89.90 -> 89.90' in capsys.readouterr().out
    driver.run()
    assert len(driver.began) == 8
    assert 'nothing to do' in capsys.readouterr().out


def test_run_again(driver, capsys, monkeypatch):
    """Elsewhere, with what the page has beside it."""
    page = driver.folder / 'page'
    monkeypatch.setattr(driver.module, 'RESULTS', page)
    driver.run('--out', str(page), seeds='0')
    assert 'docs/accuracy' not in capsys.readouterr().out
    shutil.rmtree(driver.folder / 'work')
    driver.baseline = 91.0
    driver.run(seeds='05', lrs=['0.2'])
    lines = capsys.readouterr().out.splitlines()
    ended = [line.partition(' (')[0] for line in lines if '->' in line]
    assert [line.partition('] ')[2] for line in ended] == [
        'baseline_seed0: 91.00 -> 91.00 with 50.0% of the flops; '
        'docs/accuracy/cifar10.md has 90.00',
        'fisher_acts_seed0_lr0.2: 91.20 -> 91.20 with 50.0% of the flops; '
        'docs/accuracy/cifar10.md has 90.20',
        'ours_l1_seed0_lr0.2: 90.80 -> 90.80 with 50.0% of the flops; '
        'docs/accuracy/cifar10.md has 89.80',
        'fisher_acts_seed5_lr0.2: 91.20 -> 91.20 with 50.0% of the flops',
        'ours_l1_seed5_lr0.2: 90.80 -> 90.80 with 50.0% of the flops',
    ]


def test_without_torch_pruning(driver, monkeypatch):
    """It is said before a baseline is trained, if it is needed."""
    monkeypatch.setattr(driver.module, 'find_spec', lambda name: None)
    with pytest.raises(
        SystemExit, match=r'torch_pruning_l1 needs .*pip install --no-deps -r'
    ):
        driver.run('--filter', 'fisher_acts', 'torch_pruning_l1')
    assert driver.began == []
    driver.run()
    assert len(driver.began) == 7


def test_slow_processor(driver, capsys, monkeypatch):
    """It is said before hours are spent, and where to look meanwhile."""
    monkeypatch.setattr(driver.module, 'get_device', lambda: 'cpu')
    for slow in (True, False):
        monkeypatch.setattr(
            driver.module,
            'precision',
            lambda slow=slow: 'float32' if slow else 'bfloat16',
        )
        driver.results.unlink(missing_ok=True)
        shutil.rmtree(driver.folder / 'work', ignore_errors=True)
        driver.run()
        words = capsys.readouterr()
        assert ('no instructions for bfloat16' in words.err) is slow
        log = driver.folder / 'work/baseline_seed0/log.txt'
        assert f'baseline_seed0: began, {log} (' in words.out
    driver.run()
    assert 'bfloat16' not in capsys.readouterr().err


def test_going_on_from_committed_results(driver, capsys):
    """The networks are not committed: the baseline is trained again."""
    driver.run()
    shutil.rmtree(driver.folder / 'work')
    driver.began.clear()
    driver.run('--filter', 'ours_l1', seeds='057')
    assert driver.began == [('baseline', 0, 0.0), ('ours_l1', 7, 0.1)]
    assert 'baseline_seed0: 90.00 -> 90.00, as in' in capsys.readouterr().out
    assert driver.names().count('baseline') == 1


def test_results_of_two_baselines_do_not_mix(driver):
    driver.run()
    shutil.rmtree(driver.folder / 'work')
    driver.baseline = 91.5
    before = driver.results.read_text()
    # once it was trained, and whenever it is there
    for _ in range(2):
        with pytest.raises(
            SystemExit, match=r'91\.50 here and 90\.00 in .*--baseline-seed'
        ):
            driver.run(seeds='057')
    assert driver.began[7:] == [('baseline', 0, 0.0)]
    assert driver.results.read_text() == before


def test_another_baseline(driver, capsys):
    """Goes on with the results of the first, whose rates are known."""
    driver.run(seeds='0')
    driver.began.clear()
    driver.baseline = 91.5
    driver.run('--baseline-seed', '2', seeds='02')
    assert driver.began == [
        ('baseline', 2, 0.0),
        *[(n, 0, lr) for n, lr in (('fisher_acts', 0.2), ('ours_l1', 0.1))],
        *[(n, 2, lr) for n, lr in (('fisher_acts', 0.2), ('ours_l1', 0.1))],
    ]
    folders = {path.name for path in (driver.folder / 'work').iterdir()}
    assert {'baseline_seed2', 'ours_l1_seed0_lr0.1'} <= folders
    assert 'ours_l1_seed0_lr0.1_baseline2' in folders
    lines = driver.results.read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [r['baseline_seed'] for r in results] == [0] * 5 + [2] * 5
    driver.run('--baseline-seed', '2', seeds='02')
    assert len(driver.began) == 5
    assert 'nothing to do' in capsys.readouterr().out


def test_rates_that_are_asked_again(driver):
    """With a seed that has fewer rates than another nothing is chosen."""
    driver.run(seeds='0', lrs=['0.1'])
    driver.began.clear()
    driver.run(seeds='5')
    assert driver.began == [
        ('fisher_acts', 5, 0.1),
        ('ours_l1', 5, 0.1),
        ('fisher_acts', 5, 0.2),
        ('ours_l1', 5, 0.2),
    ]


def test_gains():
    """To the baseline that a run began with; the first seed chooses."""
    from results import summaries

    def result(name, baseline, seed, lr, top1):
        return dict(
            experiment=name,
            baseline_seed=baseline,
            seed=seed,
            lr=lr,
            finetuned={'accuracy/top1': top1},
        )

    found = summaries(
        [
            result('baseline', 0, 0, 0.3, 90.0),
            result('baseline', 2, 2, 0.3, 80.0),
            result('fisher_acts', 2, 2, 0.1, 79.0),
            result('fisher_acts', 2, 2, 0.2, 81.0),
            result('fisher_acts', 0, 0, 0.1, 88.0),
            result('fisher_acts', 0, 2, 0.2, 89.5),
            result('fisher_acts', 0, 0, 0.4, 10.0),
            result('fisher_acts', 0, 0, 0.2, 87.0),
            result('unpruned', 0, 0, 0.1, 91.0),
            result('unpruned', 2, 2, 0.1, 85.0),
            result('unpruned', 2, 2, 0.2, 86.0),
        ]
    )
    # who adds a baseline of his own does not change what was compared
    assert found['unpruned'].tuning == {0.1: 91.0}
    assert found['unpruned'].gains() == [1.0, 5.0]
    chosen = found['fisher_acts']
    assert chosen.tuning == {0.1: 88.0, 0.2: 87.0, 0.4: 10.0}
    assert chosen.lr == 0.1
    assert chosen.gains() == [-2.0, -1.0]
    assert chosen.by_seed() == {(0, 0): 88.0, (2, 2): 79.0}
    assert found['baseline'].gains() == [0.0, 0.0]


def test_rates_of_the_list(driver):
    driver.run(seeds='0', lrs=None)
    assert driver.began[1:] == [
        (name, 0, lr)
        for lr in (0.03, 0.1)
        for name in ('fisher_acts', 'ours_l1')
    ]


def commands_of(config, script):
    """The arguments of a list's commands that call the script."""
    for line in config.commands.replace('\\\n', '').splitlines():
        words = shlex.split(line, comments=True)
        if len(words) > 1 and Path(words[1]).name == script:
            yield words[2:]


@pytest.mark.parametrize(
    'path', sorted(HARNESS.glob('results/*.jsonl')), ids=lambda path: path.stem
)
def test_commands(path, tmp_path):
    """Those of a list make the runs that its results have, and no other."""
    import run
    from mmengine.config import Config
    from results import read_results

    kept = read_results(path)
    waiting = {
        (r['baseline_seed'], r['experiment'], r['seed'], r['lr']): r
        for r in kept
    }

    class Again(run.Experiments):
        def _check_peers(self, names):
            """Nothing is run."""

        def _run(self, jobs, later):
            for name, seed, lr in jobs:
                number = self.args.baseline_seed
                if name == 'baseline':
                    lr = config.baseline.lr
                    if (number, name, seed, lr) in made:
                        continue
                made.append((number, name, seed, lr))
                with open(self.file, 'a') as file:
                    result = waiting.pop(made[-1])
                    self.results.append(result)
                    file.write(f'{json.dumps(result)}\n')

    config = Config.fromfile(HARNESS / f'configs/{path.stem}/baseline.py')
    made = []
    for words in commands_of(config, 'run.py'):
        folders = ['--out', str(tmp_path), '--work-dir', str(tmp_path)]
        Again(run.parse_args([*words, *folders])).run()
    assert not waiting


@pytest.mark.parametrize(
    'path',
    sorted(HARNESS.glob('results/*_latency*.json')),
    ids=lambda path: path.stem,
)
def test_latency_commands(path):
    """Those of a list measure the networks that its tables have."""
    import latency
    from mmengine.config import Config
    from results import read_results, summaries

    name = path.stem.partition('_latency')[0]
    found = summaries(read_results(path.with_name(f'{name}.jsonl')))
    config = Config.fromfile(HARNESS / f'configs/{name}/baseline.py')
    measured = {}
    for words in commands_of(config, 'latency.py'):
        args = latency.parse_args(words)
        names = ['baseline']
        for network in latency.chosen(args, found):
            rounded = [f'{network}, rounded'] if args.round_to > 1 else []
            names += [network, *rounded]
        measured[latency.name_of(args)] = args.rounds, names
    known = json.loads(path.read_text())
    networks = [list(timing['networks']) for timing in known['times']]
    rounds, names = measured[path.stem]
    assert networks == [names] * len(networks)
    assert known['rounds'] == rounds


def test_failed_experiments(driver, capsys):
    """The others go on; a failed baseline ends the list."""
    driver.failing = ('fisher_acts',)
    with pytest.raises(SystemExit, match='fisher_acts_seed0'):
        driver.run(lrs=['0.1'])
    assert driver.names() == ['baseline', 'ours_l1', 'ours_l1']
    assert 'fisher_acts_seed0_lr0.1: failed with' in capsys.readouterr().out

    shutil.rmtree(driver.folder / 'work')
    driver.results.unlink()
    driver.began.clear()
    driver.failing = ('baseline',)
    with pytest.raises(SystemExit, match='failed: baseline_seed0'):
        driver.run()
    assert driver.began == [('baseline', 0, 0.0)]


def test_filter_without_a_match(driver):
    with pytest.raises(SystemExit, match='--filter fischer_acts: no exp'):
        driver.run('--filter', 'fischer_acts')
    assert driver.began == []


@pytest.mark.skipif(sys.platform != 'linux', reason='children are of /proc')
def test_no_experiment_outlives_the_list(tmp_path):
    # the others' criteria need a package of their own
    arguments = ['--out', tmp_path, '--work-dir', tmp_path, '--debug']
    arguments += ['--filter', 'fisher_*']
    process = subprocess.Popen(
        command(HARNESS / 'run.py', 'cifar10', '--data-root', '', *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert 'baseline_seed0: began' in process.stdout.readline()
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    (child,) = children.read_text().split()
    process.terminate()
    assert process.wait(timeout=60) != 0
    assert not Path(f'/proc/{child}').exists()


@pytest.mark.parametrize('name', ['bccd_fcos', 'bccd_retinanet', 'cifar10'])
def test_networks_of_known_widths(name):
    """Any channels, GroupNorm too: all shapes are those of the pruned one."""
    if 'bccd' in name:
        require('mmdet')
    import latency
    from experiment import cost_of, widths_of
    from mmengine.config import Config

    from mmgfp.libraries.channel_groups import demo_groups
    from mmgfp.libraries.forward import cost_runner
    from mmgfp.libraries.models import build_model

    path = HARNESS / 'configs' / name / 'fisher_acts.py'
    config = Config.fromfile(path)
    model = build_model(config)
    full = widths_of(model)
    groups = demo_groups(model, config.input_shape)
    run = cost_runner(config.input_shape)
    calls = record_calls(model, lambda: run(model))
    pruner = pruner_of(model, groups, calls, criterion=Random())
    pruner.prune(lambda choices: pruner.net.ratio('flops') <= 0.5)
    left = widths_of(model)
    widths = {layer: (left[layer], full[layer]) for layer in full}
    assert sum(left.values()) < 0.9 * sum(full.values())
    result = dict(experiment=path.stem, widths=widths)
    cost = cost_of(model, config.input_shape)
    built = latency.build(config, dict(result, cost=cost))
    assert shapes_of(built) == shapes_of(model)
    if name == 'bccd_fcos':
        norm = built.bbox_head.cls_convs[0].gn
        assert norm.num_groups * 2 == norm.num_channels < 64
    rounded = widths_of(latency.build(config, dict(result, cost=cost), 8))
    assert rounded != left
    for layer, width in rounded.items():
        if full[layer] % 8:  # what predicts, which pruning leaves alone
            assert width == full[layer]
        else:
            assert width % 8 == 0 < width
            # the next multiple is no nearer
            assert abs(width - left[layer]) <= 4 or width == 8
    with pytest.raises(RuntimeError, match='a network of its widths costs'):
        latency.build(config, dict(result, cost=dict(cost, flops=1)))


def test_latency_of_rounded_widths():
    """Beside the same network as it comes; the baseline stays whole."""
    import latency
    from experiment import widths_of
    from results import read_results

    words = ['cifar10', '--networks', 'fisher_acts', '--round-to', '8']
    baseline, exact, rounded = latency.build_all(latency.parse_args(words))
    file = HARNESS / 'results/cifar10.jsonl'
    costs = {
        result['experiment']: result['cost']
        for result in reversed(read_results(file))  # the first remains
    }
    assert baseline.cost == costs['baseline']
    assert (exact.name, exact.cost) == ('fisher_acts', costs['fisher_acts'])
    assert rounded.name == 'fisher_acts, rounded'
    assert any(width % 8 for width in widths_of(exact.model).values())
    assert not any(width % 8 for width in widths_of(rounded.model).values())


def test_latency_of_unknown_networks(tmp_path):
    import latency

    lines = [
        dict(
            experiment=name,
            seed=0,
            baseline_seed=0,
            lr=0.1,
            finetuned={'accuracy/top1': 90.0},
            pruning=pruning,
        )
        for name, pruning in (
            ('baseline', None),
            ('fisher_acts', dict(target=dict(flops=0.5))),
        )
    ]
    file = tmp_path / 'cifar10.jsonl'
    file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    words = ['cifar10', '--out', str(tmp_path), '--networks', 'ours_*']
    with pytest.raises(
        SystemExit, match=r'--networks ours_\*: .* they have fisher_acts$'
    ):
        latency.build_all(latency.parse_args(words))


def shapes_of(model):
    return {key: value.shape for key, value in model.state_dict().items()}
