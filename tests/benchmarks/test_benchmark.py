"""The benchmark's own parts: what it compares does the same."""

from __future__ import annotations

import json

import benchmark
import pytest
import torch
from benchmark import main
from benchmark_page import write_report
from benchmark_training import (
    Network,
    Training,
    after_target,
    bandwidth,
    bytes_of_scores,
    phase,
    pruning_steps,
    ratios,
)
from processes import ROOT
from pruning import sums
from stack import CLASSIFICATION

pytestmark = pytest.mark.skipif(
    CLASSIFICATION != 'mmpretrain', reason="the configs are MMPretrain's"
)

SMALL = Network(
    'small', str(ROOT / 'configs/quickstart/resnet18_digits.py'), (28, 28), 4
)


@pytest.fixture(scope='module')
def training() -> Training:
    return Training(SMALL, 'cpu')


def test_all_methods_find_the_same_scores(training):
    for group in training.optimizer.param_groups:
        group.update(lr=0.0, weight_decay=0.0)
    for method in training.methods.values():
        method.start()
        training.iteration(method)
        method.stop()
    ours = torch.cat([torch.from_numpy(f) for f in sums(training.pruner)])
    assert (ours > 0).sum() > 100
    for name in ('reference', 'kept'):
        found = torch.cat(training.methods[name].scores) * SMALL.images**2
        torch.testing.assert_close(found.double(), ours, rtol=1e-3, atol=1e-9)


def test_nothing_stays_behind(training):
    for method in training.methods.values():
        method.start()
        method.stop()
    for module in training.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_measurements(training):
    taken = training.seconds(('plain', 'mmgfp'), rounds=2)
    assert [len(values) for values in taken.values()] == [2, 2]
    assert len(after_target(training, 1)) == 1
    before = training.pruner.net.cost()
    assert len(pruning_steps(training, 2)) == 2
    assert training.pruner.net.cost()['flops'] < before['flops']
    assert training.pruner.net.masks.cuts == 2


@pytest.mark.parametrize('cut_to', [0, 1])
def test_phase(training, cut_to):
    groups = Training(SMALL, 'cpu').groups
    found = phase(SMALL, 'cpu', groups, cut_to, steps=2, interval=1)
    assert found['cuts'] == (2 if cut_to else 0)
    assert 0 < found['pruning'] < found['seconds']
    assert 0.75 <= found['flops'] < 1  # before each of two steps to a half


def test_bytes_of_scores():
    """Inputs of ResNet-18's layers on images of 28 pixels, by hand."""
    elements = (
        (64 + 64 + 5 * 16) * 28**2
        + 5 * 32 * 14**2
        + 5 * 64 * 7**2
        + 3 * 128 * 4**2
        + 128
    )
    assert bytes_of_scores(Training(SMALL, 'cpu')) == 4 * elements * 2 * 4


def test_bandwidth():
    assert 1e8 < bandwidth('cpu') < 1e13


def test_ratios():
    taken = dict(plain=[1.0, 2.0, 4.0], mmgfp=[1.1, 2.0, 4.8])
    found = ratios(taken)['mmgfp']
    assert found['seconds'] == 2.0
    assert found['ratio'] == pytest.approx(1.1)
    assert (found['least'], found['most']) == pytest.approx((1.0, 1.2))


def test_report(tmp_path):
    spread = dict(seconds=2.0, ratio=1.04, least=1.0, most=1.1)
    times = dict.fromkeys(('plain', 'mmgfp', 'reference', 'kept'), spread)
    point = [dict(spread, value=n) for n in (1, 2)]
    result = dict(
        machine=dict(
            device='a machine', threads='2', python='3', mmgfp='0', date='now'
        ),
        retinanet=dict(
            input=[2, 320, 256],
            groups=[1.5, 1.6, 2.0],
            memory=dict(plain=100.0, mmgfp=101.0, reference=150.0, kept=200.0),
            time=times,
            after=[1.0],
            reading=0.03,
            steps=[0.1, 0.2, 0.3],
            phase={
                '1': [dict(seconds=70.0), dict(seconds=80.0)],
                '0': [dict(seconds=100.0, flops=0.77)],
            },
            growth=dict(side=point, images=point, groups=point),
        ),
    )
    out = tmp_path / 'benchmarks'
    out.mkdir()
    (out / 'training_cpu.json').write_text(json.dumps(result))
    (out / 'other.md').write_text('## Something else\n')
    page = write_report(out).read_text()
    assert page.endswith('\n## Something else\n')
    assert '| finding groups on one core, seconds | 1.60 |' in page
    assert '| batch, images of pixels | 2 of 320x256 |' in page
    assert '| image side, pixels | 2 | 1.040 (1.00 to 1.10) |' in page
    assert '| pruning step / 10 plain iterations | 1.0% |' in page
    assert 'cutting / masking only | 0.75 |' in page
    assert 'share of the flops meanwhile | 0.77 |' in page
    assert 'gradients once / plain iteration | 0.015 |' in page
    assert "plain, MMRazor's method | 2.000 |" in page
    assert (out / 'training_cpu.png').read_bytes()[:4] == b'\x89PNG'


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    measured = []

    def measure(self, name, which):
        if measured.count(name) == 0 and name == 'fcos':
            measured.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        self.keep(name, 'steps', value=[len(measured)])

    monkeypatch.setattr(benchmark.Benchmark, 'measure', measure)
    monkeypatch.setattr(benchmark, 'growth', lambda *args: {})
    args = [
        *[
            'training',
            '--rounds',
            '2',
            '--networks',
            'retinanet',
            'fcos',
            '--out',
        ]
    ]
    args = benchmark.parse_args([*args, str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        benchmark.Benchmark(args).run()
    assert not (tmp_path / 'training_cpu.json').exists()
    benchmark.Benchmark(args).run()
    assert measured == ['retinanet', 'fcos', 'fcos']
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert file.name == 'training_cpu.json' and result['rounds'] == 2
    assert result['retinanet'] == dict(steps=[1], growth={})
    assert result['fcos'] == dict(steps=[3])


def test_other_rounds_are_not_mixed(tmp_path, monkeypatch):
    (tmp_path / 'interrupted_cpu.json').write_text(
        json.dumps(dict(machine={}, rounds=9, retinanet=dict(steps=[1])))
    )
    args = benchmark.parse_args(['training', '--out', str(tmp_path)])
    assert 'retinanet' not in benchmark.Benchmark(args).result


def test_no_such_device(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as end:
        main(['training', '--device', 'cuda'])
    assert end.value.code not in (None, 0)
    assert 'finds no GPU' in capsys.readouterr().err
