"""The harness of the accuracy experiments, on a few made-up images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from stack import require
from toy import ROOT, command, environment

from mmgfp import find_groups
from mmgfp.cost import record_calls

HARNESS = ROOT / 'benchmarks' / 'accuracy'
sys.path.insert(0, str(HARNESS))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Four classes, eight images each; a config of few and narrow layers."""
    require('mmpretrain')
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
        + ('pruning = dict(interval=1)\n' if name != 'baseline' else '')
        + 'baseline = dict(epochs=2)\n'
        'prune = dict(epochs=3)\n'
        'finetune = dict(epochs=1)\n'
    )
    return path


@pytest.mark.parametrize(
    'path', sorted(HARNESS.glob('configs/*/[!_]*.py')), ids=str
)
def test_configs(path):
    """Each makes a network that its hook prunes, but for the unpruned."""
    require('mmdet' if 'bccd' in path.parent.name else 'mmpretrain')
    if 'torch_pruning' in path.stem:
        pytest.importorskip('torch_pruning')
    from mmengine.registry import HOOKS

    from mmgfp.adapt import build_model
    from mmgfp.config import load_config

    config = load_config(path)
    assert build_model(config).training is False
    assert (config.pruning is None) == (path.stem in ('baseline', 'unpruned'))
    if config.pruning is not None:
        assert HOOKS.build(config.pruning).priority
    for name in ('title', 'metric', 'commands', 'input_shape'):
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

    def result(name, seed, lr, top1, flops=0.5):
        pruned = name not in ('baseline', 'unpruned')
        return dict(
            experiment=name,
            seed=seed,
            lr=lr,
            pruning=dict(target=dict(flops=0.5)) if pruned else None,
            phases={
                key: dict(epochs=3, lr=0.02)
                for key in ('baseline', 'prune', 'finetune')
            },
            pruned={'accuracy/top1': top1 - 10},
            finetuned={'accuracy/top1': top1},
            shares=dict(flops=flops, acts=0.25, params=0.125),
            widths={'backbone.conv1': (1, 4)},
            machine=dict(
                threads='1', python='3', mmgfp='0', date='2026-01-02'
            ),
        )

    results = [
        result('baseline', 0, 0.1, 90.0),
        result('unpruned', 0, 0.1, 91.0),
        result('fisher_acts', 0, 0.1, 80.0),
        result('fisher_acts', 0, 0.2, 84.0),
        result('fisher_acts', 1, 0.2, 86.0, flops=0.4),
        result('torch_pruning_l1', 0, 0.1, 83.0),
        result('torch_pruning_l1', 0, 0.2, 82.0),
        result('torch_pruning_l1', 1, 0.1, 86.5),
        result('ablation_interval_2', 0, 0.2, 88.0),
    ]
    lines = ''.join(f'{json.dumps(one)}\n' for one in results)
    (tmp_path / 'cifar10.jsonl').write_text(lines)
    arguments = ['--results', str(tmp_path), '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['report.py', *arguments])
    report.main()
    page = (tmp_path / 'accuracy.md').read_text()
    assert 'Fine-tuned without pruning, the baseline comes to 91.00.' in page
    assert (
        '| `fisher_acts` | 2 | 75.00 (74.00 to 76.00) | '
        '85.00 (84.00 to 86.00) | -5.00 | 45.0% | 25.0% | 12.5% | '
        '0.1 80.00, **0.2** 84.00 |'
    ) in page
    assert (
        '| `torch_pruning_l1` | 2 | 74.75 (73.00 to 76.50) | '
        '84.75 (83.00 to 86.50) | -5.25 | 50.0% | 25.0% | 12.5% | '
        '**0.1** 83.00, 0.2 82.00 |'
    ) in page
    # 84 - 83, 86 - 86.5
    assert '`torch_pruning_l1` **+0.25** (+1.00, -0.50)' in page
    before, after = page.split('### Ablations')
    assert '`ablation_interval_2` |' in after
    assert '`ablation_interval_2` |' not in before
    assert '`unpruned`' not in page
    assert (tmp_path / 'accuracy/cifar10.png').read_bytes()[1:4] == b'PNG'


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
    assert report.kept_by_stage(Summary('fisher_acts', 0.1, runs, {})) == {
        'backbone.conv1': 0.5,
        'backbone.layer1': 0.75,
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


def test_baseline(baseline):
    result = json.loads((baseline / 'result.json').read_text())
    assert result['shares'] == dict(flops=1, params=1, acts=1)
    assert (baseline / 'model.pth').exists()


def test_shortcuts_begin_as_option_a(folder):
    import models

    block = models.Block(4, 8, 2)
    x = torch.randn(1, 4, 6, 6)
    expected = torch.zeros(1, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block.shortcut(x), expected)


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
    assert result['finetuned']['accuracy/top1'] >= 0
    weights = torch.load(out / 'model.pth', weights_only=True)['state_dict']
    params = sum(
        tensor.numel()
        for key, tensor in weights.items()
        if key.endswith(('weight', 'bias'))
    )
    assert params == result['cost']['params']


def test_criteria():
    """By loops over units, layers and images."""
    require('mmpretrain')
    import criteria
    import models

    torch.manual_seed(0)
    model, images = models.CifarResNet(8), torch.randn(2, 3, 32, 32)

    def run(model):
        return model(images)

    groups = [g for g in find_groups(model, run, images=2) if not g.frozen]
    calls = record_calls(model, lambda: run(model))
    pruner = criteria.CriterionPruner(
        model, groups, calls, 'none', criterion='l1'
    )
    pruner.attach()
    tensors = dict(model.named_parameters())
    for criterion, roles in (
        ('l1', ('producer', 'grouped')),
        ('bn_scale', ('affine',)),
    ):
        pruner.criterion = criterion
        check_magnitude(pruner.fisher(), groups, tensors, roles)
    from mmgfp.fisher import FisherTaps

    pruner.detach()
    taps = FisherTaps(model, groups)
    totals = []
    for _ in range(2):
        run(model)[0].square().sum().backward()
        totals.append(taps.take().double().sum(0).numpy())
    taps.detach()
    for criterion, expected in (
        ('taylor', abs(totals[0] + totals[1])),
        ('batch_fisher', totals[0] ** 2 + totals[1] ** 2),
    ):
        pruner = criteria.CriterionPruner(
            model, groups, calls, 'none', criterion=criterion
        )
        pruner.attach()
        for _ in range(2):
            run(model)[0].square().sum().backward()
            pruner.accumulate()
        found = np.concatenate(pruner.fisher())
        pruner.detach()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def check_magnitude(found, groups, tensors, roles):
    for group, scores in zip(groups, found):
        for unit in range(group.size):
            shares = []
            for member in group.members:
                if member.role in roles and member.tensor.endswith('weight'):
                    each = [
                        tensors[member.tensor].select(member.axis, int(i))
                        for i in member.index[:, 0]
                    ]
                    sizes = [float(w.detach().abs().mean()) for w in each]
                    shares.append(sizes[unit] / np.mean(sizes))
            assert scores[unit] == pytest.approx(np.mean(shares), rel=1e-5)


def test_order_and_resuming(tmp_path, monkeypatch, capsys):
    """Learning rates with the first seed, then the best with the others."""
    import run as driver

    began = []

    class Process:
        returncode = 0

        def poll(self):
            return 0

        def terminate(self):
            pass

        def wait(self):
            return 0

    def start(self, job):
        began.append(job)
        name, seed, lr = job
        folder = self._folder(job)
        folder.mkdir(parents=True)
        (folder / 'model.pth').touch()
        top1 = 90 + {'fisher_acts': lr, 'ours_l1': -lr}.get(name, 0)
        metrics = {'accuracy/top1': top1}
        result = dict(experiment=name, seed=seed, lr=lr, pruned=metrics)
        result |= dict(finetuned=metrics, shares=dict(flops=0.5))
        (folder / 'result.json').write_text(json.dumps(result))
        if len(began) == stop:
            raise KeyboardInterrupt
        return Process()

    monkeypatch.setattr(driver.Experiments, '_start', start)
    monkeypatch.setattr(driver.time, 'sleep', lambda seconds: None)
    args = [
        *('cifar10', '--data-root', 'nowhere', '--seeds', '0', '5'),
        *('--lrs', '0.1', '0.2', '--filter', 'fisher_acts', 'ours_l1'),
        *('--out', str(tmp_path), '--work-dir', str(tmp_path / 'work')),
    ]
    monkeypatch.setattr(sys, 'argv', ['run.py', *args])
    stop = 4
    with pytest.raises(SystemExit) as ended:
        driver.main()
    assert ended.value.code == 130
    assert len((tmp_path / 'cifar10.jsonl').read_text().splitlines()) == 3
    shutil.rmtree(tmp_path / 'work/fisher_acts_seed0_lr0.2')
    stop = 0
    driver.main()
    assert began == [
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
    driver.main()
    assert len(began) == 8

    # results without the networks, as in a clean clone: the baseline's again
    shutil.rmtree(tmp_path / 'work')
    driver.main()
    assert len(began) == 8
    driver.sys.argv += ['--seeds', '0', '5', '7', '--filter', 'ours_l1']
    driver.main()
    assert began[8:] == [('baseline', 0, 0.0), ('ours_l1', 7, 0.1)]
    assert 'baseline_seed0: 90.00 -> 90.00, 90.00 before' in (
        capsys.readouterr().out
    )
    names = [
        json.loads(line)['experiment']
        for line in (tmp_path / 'cifar10.jsonl').read_text().splitlines()
    ]
    assert names.count('baseline') == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='children are of /proc')
def test_no_experiment_outlives_the_list(tmp_path):
    arguments = ['--out', tmp_path, '--work-dir', tmp_path, '--debug']
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


def test_running_scores_outlive_a_step():
    require('mmpretrain')
    import criteria
    import models

    torch.manual_seed(0)
    model, images = models.CifarResNet(8), torch.randn(2, 3, 32, 32)

    def run(model):
        return model(images)

    groups = [g for g in find_groups(model, run, images=2) if not g.frozen]
    calls = record_calls(model, lambda: run(model))
    pruner = criteria.CriterionPruner(
        model, groups, calls, 'none', criterion='running_fisher'
    )
    pruner.attach()
    run(model)[0].square().sum().backward()
    pruner.accumulate()
    before = [scores.copy() for scores in pruner.fisher()]
    removals = pruner.prune(lambda choices: choices == 5)
    assert len(removals) == 5
    gone = 0
    for old, new in zip(before, pruner.fisher()):
        count = len(old) - len(new)
        gone += count
        # the least ones are gone, in the order of the units the rest stays
        stay = np.sort(np.argsort(old)[count:])
        np.testing.assert_allclose(new, 0.9 * old[stay], rtol=1e-6)
    assert gone == 5
    pruner.detach()


def test_slim_networks_are_loaded_by_their_shapes(tmp_path):
    """GroupNorm too, whose groups go as a whole."""
    require('mmdet')
    import latency
    from mmengine.config import Config

    from mmgfp import GroupFisherPruner
    from mmgfp.adapt import build_model
    from mmgfp.demo import cost_runner

    config = Config.fromfile(HARNESS / 'configs/bccd_fcos/baseline.py')
    torch.manual_seed(0)
    model = build_model(config)
    run = cost_runner((64, 64))
    groups = find_groups(model, run)
    calls = record_calls(model, lambda: run(model))
    head = [g for g in groups if g.name.startswith('bbox_head.cls_convs.0')]
    pruner = GroupFisherPruner(model, head, calls)
    pruner.attach()
    norm = model.bbox_head.cls_convs[0].gn
    assert (norm.num_channels, norm.num_groups) == (64, 32)
    pruner.prune(lambda choices: choices == 5)
    pruner.detach()
    assert (norm.num_channels, norm.num_groups) == (54, 27)
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    loaded = latency.load(config, path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model.eval()(images))
