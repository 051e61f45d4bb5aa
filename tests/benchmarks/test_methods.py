"""The comparison of methods on a short schedule: its configs and its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import HOOKS
from stack import require
from torch import nn

HARNESS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'accuracy'
sys.path.append(str(HARNESS))

import half_kfac  # noqa: E402
import methods  # noqa: E402
import methods_report  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402

from mmgfp.groups import UnitSpace  # noqa: E402
from mmgfp.utils.environment import machine  # noqa: E402

LISTS = sorted((HARNESS / 'configs' / '_methods').glob('[!_]*.py'))


@pytest.mark.parametrize('path', LISTS, ids=lambda path: path.stem)
def test_every_experiment_has_hooks_and_a_name(path):
    config = Config.fromfile(path, import_custom_modules=False)
    for name, phases in config.experiments.items():
        method, kind, amount = methods_report.parts(name)
        assert not phases or methods_report.name_of(method)
        for phase, hook in phases.items():
            assert phase in config
            if 'structure' in hook:  # that the phase before writes
                continue
            HOOKS.build(dict(hook))
            if kind == 'density':
                assert hook['density'] == amount
            else:
                assert hook['target'] == {kind: amount}


def test_values_in_the_order_of_others():
    values = torch.tensor([[5.0, 1.0], [3.0, 3.0]])
    order = torch.tensor([[0.2, 0.4], [0.3, 0.1]])
    expected = torch.tensor([[3.0, 5.0], [3.0, 1.0]])
    assert half_kfac.rearranged(values, order).equal(expected)


@pytest.mark.parametrize('part', ['ratios', 'order'])
def test_half_of_kfac(part):
    """As many weights of each layer as one score, those of the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    criterion = half_kfac.HalfKFAC(part, fisher='empirical')
    whole = half_kfac.KFAC(fisher='empirical')
    for one in (criterion, whole):
        one.attach(model, UnitSpace([]))
        with one.observing():
            model(torch.ones(5, 4)).square().sum().backward()
            one.end_batch()
    names = ['0.weight', '2.weight']
    magnitude = {n: model.get_parameter(n).detach().abs() for n in names}
    scores = whole.elements(names)
    numbers, order = scores, magnitude
    if part == 'order':
        numbers, order = order, numbers
    new = criterion.elements(names)
    bound = torch.cat([numbers[n].flatten() for n in names]).median()
    for name in names:
        stays = new[name] > bound
        assert stays.sum() == (numbers[name] > bound).sum()
        assert 0 < stays.sum() < stays.numel()
        assert order[name][stays].min() > order[name][~stays].max()


def test_a_table_for_each_metric(tmp_path):
    def result(name: str, before: float, after: float) -> dict:
        found = ('pruned', before), ('finetuned', after), ('baseline', 33.5)
        return dict(
            {
                phase: {'psnr/set14': number - 4, 'psnr/set5': number}
                for phase, number in found
            },
            experiment=name,
            seed=0,
            widths={'first': 0.5, 'last': 1.0},
            machine=machine('cpu'),
            precision='float32',
        )

    other = dict(
        result('uniform_flops_0.5', 29, 32.25),
        baseline={'psnr/set14': 29.0, 'psnr/set5': 33.0},
        precision='bfloat16',
    )
    rows = [
        result('unpruned', 33.5, 34),
        result('fisher_flops_flops_0.5', 31, 33),
        result('uniform_flops_0.5', 30, 33.25),
        other,
    ]
    file = tmp_path / 'superres.jsonl'
    file.write_text('\n'.join(json.dumps(row) for row in rows))
    text = methods_report.page(file, tmp_path)
    assert (tmp_path / 'methods_superres_widths.png').exists()
    assert (
        'The baseline comes to 33.50 dB on Set5, and to 34.00 when it is '
        'trained on; one that was trained in bfloat16 comes to *33.00*, '
        'results from it are in italics.'
    ) in text
    assert [line[:12] for line in text[-3::2]] == [
        'In float32 o',
        'In bfloat16 ',
    ]
    large, small = (
        text.index(f'## Channels, with a ratio of the flops: dB on {name}')
        for name in ('Set14', 'Set5')
    )
    for start, less in ((large, 4), (small, 0)):
        assert text[start + 4 : start + 6] == [
            f'| Fisher per multiply-accumulate | {31 - less:.2f} -> '
            f'{33 - less:.2f} |',
            f'| uniform widths, L1 | {30 - less:.2f} -> {33.25 - less:.2f}; '
            f'*{29 - less:.2f} -> {32.25 - less:.2f}* |',
        ]


def test_super_resolution_needs_mmengine_only():
    hidden = ('mmdet', 'mmpretrain', 'mmcls', 'mmseg', 'mmpose')
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({hidden}))\n'
        f'sys.path.insert(0, {str(HARNESS)!r}); import superres'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_search_on_a_segmentor(tmp_path, monkeypatch):
    require('mmseg')
    rng = np.random.default_rng(0)
    for split, count in dict(train=8, test=2).items():
        for kind in ('img', 'ann'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = rng.integers(0, 11, (3, 4), dtype=np.uint8)
            labels = labels.repeat(20, 0).repeat(20, 1)
            picture = np.stack([labels * 20] * 3, -1)
            cv2.imwrite(str(tmp_path / f'img/{split}/{i}.jpg'), picture)
            labels[:20, :20] = 255
            cv2.imwrite(str(tmp_path / f'ann/{split}/{i}.png'), labels)
    (tmp_path / 'short.py').write_text(
        f'_base_ = [{str(HARNESS / "configs/_methods/camvid.py")!r}]\n'
        'train_dataloader = dict(batch_size=4)\n'
        'input_shape = (60, 80)\n'
        'baseline = dict(epochs=1)\n'
        'prune = dict(epochs=3)\n'
        'finetune = dict(epochs=1)\n'
        'experiments = {"dcss_flops_0.5": dict(prune=dict(interval=1))}\n'
    )
    monkeypatch.setattr(methods, 'LISTS', tmp_path)
    methods.main(
        [
            *(
                'short',
                '--data-root',
                str(tmp_path),
                '--filter',
                'dcss_flops*',
            ),
            *('--seeds', '0', '--out', str(tmp_path)),
            *('--work-dir', str(tmp_path / 'work')),
        ]
    )
    result = json.loads((tmp_path / 'short.jsonl').read_text())
    for phase in ('baseline', 'pruned', 'finetuned'):
        assert 0 < result[phase]['mIoU'] <= 100
    assert 0.3 < result['shares']['flops'] <= 0.5


def test_shares_of_weights_that_are_not_zero():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = model[0].weight.data.fill_(1)
    model[0].weight.data[0, 0] = 0
    model[2].weight.data.zero_()
    assert methods.densities(model) == {'0': 0.75, '2': 0.0}


def test_page(tmp_path):
    def result(name: str, seed: int, before: float, after: float) -> dict:
        return dict(
            experiment=name,
            seed=seed,
            baseline={'accuracy/top1': 90.0},
            pruned={'accuracy/top1': before},
            finetuned={'accuracy/top1': after},
            density={'backbone.conv1': 0.5, 'head.fc': 0.1},
            widths={'backbone.conv1': 0.5},
            machine=machine('cpu'),
            precision='float32',
        )

    rows = [
        result('unpruned', 0, 90.0, 90.5),
        result('nap_density_0.1', 0, 50.0, 80.0),
        result('nap_density_0.1', 1, 52.0, 81.0),
        result('magnitude_density_0.1', 0, 40.0, 82.0),
        result('dcss_flops_0.5', 0, 70.0, 88.0),
    ]
    file = tmp_path / 'cifar10.jsonl'
    file.write_text('\n'.join(json.dumps(row) for row in rows))
    text = '\n'.join(methods_report.page(file, tmp_path))
    assert 'to 90.00 % top-1, and to 90.50 when it is trained on.' in text
    assert '| NAP | 51.00 -> 80.50 (80.00, 81.00) |' in text
    assert text.index('| magnitude |') < text.index('| NAP |')
    assert '| DCSS on Fisher | 70.00 -> 88.00 |' in text
    assert (tmp_path / 'methods_cifar10_density.png').exists()
