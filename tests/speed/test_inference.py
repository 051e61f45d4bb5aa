"""The benchmark of inference: what it computes, with clocks made for it."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from digit_models import maker
from torch import nn

from mmgfp.cost import clocks
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.export.onnx import check_provider
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner
from mmgfp.libraries.models import load_model

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmgfp.commands.benchmark import main
from mmgfp.cost.turns import in_turn, ratios_to, spread
from mmgfp.report.table import render
from mmgfp.speed import backends
from mmgfp.speed import comparison as tool
from mmgfp.speed.page import write_page
from mmgfp.speed.picture import draw_inference, spread_out
from mmgfp.speed.tables import (
    HEADER,
    inference_rows,
    inference_section,
    inference_tables,
    module_rows,
)


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    return maker(tmp_path_factory.mktemp)


class Clock:
    """Time goes on only when something is run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0

    def wait(self) -> None:
        self.waited += 1

    def mark(self) -> float:
        return self.now

    def seconds(self, began: float, ended: float) -> float:
        return ended - began


def setting_of(
    case, form: str = 'full', half: bool = False
) -> backends.Setting:
    return backends.Setting(
        str(case.pair(form)[0]), {}, case.shape, 'cpu', half
    )


# -- turns -------------------------------------------------------------------


def test_another_one_begins_every_round():
    order = []

    def measure(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn(measure, 'abc', rounds=3, warmup=1)
    assert ''.join(order) == 'abcbcacababc'
    assert found == dict(a=[6, 8, 10], b=[4, 9, 11], c=[5, 7, 12])


def test_ratios_are_taken_round_by_round():
    found = dict(a=[1.0, 2.0, 4.0], b=[2.0, 1.0, 2.0])
    assert ratios_to(found, 'a') == dict(a=[1, 1, 1], b=[2, 0.5, 0.5])
    assert spread([3, 1, 2, 9]) == dict(median=2.5, least=1, most=9)


@pytest.fixture
def comparison(monkeypatch):
    """Of two networks that do nothing but let the clock go on."""
    clock = Clock()
    taken = dict(
        # the rounds for warming up take long
        full=iter([100.0] * tool.WARMUP + [0.4, 0.8, 0.6]),
        slim=iter([100.0] * tool.WARMUP + [0.2, 0.2, 0.6]),
    )

    def prepare(backend, subject, batch, setting):
        def run():
            clock.now += next(taken[subject.name])

        return run

    monkeypatch.setattr(tool, 'prepare', prepare)
    subjects = [
        backends.Subject(n, '', nn.Identity(), None, {}) for n in taken
    ]
    said = []
    progress = tool.Progress(said.append, 4 * 2 * (3 + tool.WARMUP), 2)
    return tool.Comparison(None, subjects, [4], 3, progress, clock), said


def test_times(comparison):
    found = comparison[0].times('eager', 4)
    assert (found['backend'], found['batch']) == ('eager', 4)
    full, slim = (found['networks'][name] for name in ('full', 'slim'))
    near = partial(pytest.approx, rel=1e-9)
    # milliseconds per image of a batch of four
    assert full['ms'] == near(dict(median=150, least=100, most=200))
    assert slim['ms'] == near(dict(median=50, least=50, most=150))
    assert full['ratio'] == dict(median=1, least=1, most=1)
    assert slim['ratio'] == near(dict(median=0.5, least=0.25, most=1))
    assert comparison[0].clock.waited == 2 * (3 + tool.WARMUP)


def test_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tool.time, 'monotonic', lambda: now[0])
    said = []
    progress = tool.Progress(said.append, images=10, processes=2)
    progress.begin('eager')
    for _ in range(5):
        now[0] += 4
        progress.ran(1)
    now[0] = 40  # 8 seconds per image
    for _ in range(5):
        progress.ran(1)
    progress.begin('memory')
    now[0] += 30
    progress.ended()
    progress.begin('memory')
    assert said == [
        'eager',
        # every ten seconds: after three images in 12 s, and 40 s for six
        f'eager, about 0:00:{round(7 * 4 + 2 * tool.PROCESS)} left',
        f'eager, about 0:00:{round(4 * 40 / 6 + 2 * tool.PROCESS)} left',
        f'memory, about 0:00:{round(2 * tool.PROCESS)} left',
        'memory, about 0:00:30 left',
    ]


def test_events_of_a_gpu(monkeypatch):
    """Which nobody waits for but when the time is read."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.number = sum(entry == 'made' for entry in log)
            log.append('made')

        def record(self):
            log.append(f'record {self.number}')

        def synchronize(self):
            log.append(f'wait {self.number}')

        def elapsed_time(self, other):
            return 1000.0 * (other.number - self.number) + 500

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: log.append('idle'))
    taken = clocks.seconds_of(lambda: log.append('run'), clocks.GpuClock())
    assert taken == 1.5
    assert log == (
        'idle made record%0 run made record%1 wait%1'.replace(' ', ';')
        .replace('%', ' ')
        .split(';')
    )


def test_names():
    assert backends.names_of(['a/x.pth', 'a/flops_0.50.pth']) == [
        'x',
        'flops_0.50',
    ]
    assert backends.names_of(['a/x.pth', 'b/x.pth']) == ['a/x', 'b/x']
    assert backends.names_of(['c/a/x.pth', 'c/b/x.pth', 'y.pth']) == [
        *('a/x', 'b/x', 'y')
    ]
    assert backends.names_of(['a/x.pth'] * 2) == ['x', 'x (2)']


# -- modules -----------------------------------------------------------------


class Taking(nn.Module):
    """Takes so many seconds, and those of what it calls."""

    def __init__(self, clock: Clock, seconds: float, *inner: nn.Module):
        super().__init__()
        self.clock, self.taken = clock, seconds
        self.inner = nn.ModuleList(inner)

    def forward(self):
        self.clock.now += self.taken
        for module in self.inner:
            module()


class Model(nn.Module):
    """Its head is run by its layers, one of which the neck runs, too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        shared = Taking(clock, 1)
        self.backbone = Taking(clock, 5, Taking(clock, 1), Taking(clock, 2))
        self.neck = Taking(clock, 1, shared)
        self.head = nn.Module()
        self.head.first, self.head.second = Taking(clock, 3), shared
        self.unused = Taking(clock, 100)

    def forward(self):
        self.backbone()
        self.neck()
        self.head.first()
        self.clock.now += 2
        self.head.second()
        self.head.first()


def test_shares_of_modules():
    clock = Clock()
    model = Model(clock)
    names = clocks.entrances(model, model)
    # the shared layer has the name that it was given first
    assert names == ['backbone', 'neck', 'head.first', 'neck.inner.0']
    found = clocks.module_ratios(model, names, model, clock)
    expected = dict(backbone=8, neck=2 + 1, head=6, rest=2)
    assert found == pytest.approx({k: n / 19 for k, n in expected.items()})
    assert list(found) == ['backbone', 'neck', 'head', 'rest']
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_detector_is_entered_where_it_is_run(cases):
    case = cases('retinanet')
    setting = setting_of(case)
    subject = backends.load(setting, str(case.full), 'full')
    with torch.no_grad():
        network, images = backends.raw_network(subject, 1, setting)
        names = clocks.entrances(network.model, lambda: network(images))
    tops = list(dict.fromkeys(name.partition('.')[0] for name in names))
    assert tops == ['backbone', 'neck', 'bbox_head']


# -- backends ----------------------------------------------------------------


def need_compile() -> None:
    try:
        torch.compile(nn.ReLU(), backend='eager')(torch.ones(1))
    except RuntimeError as error:
        pytest.skip(f'this PyTorch compiles nothing: {error}')


@pytest.mark.parametrize('backend', ['compile', 'onnxruntime'])
@pytest.mark.parametrize('name', ['resnet', 'retinanet', 'faster_rcnn'])
def test_backends_agree(cases, monkeypatch, name, backend):
    if backend == 'compile':
        need_compile()
    # the compiler for the processor takes long, PyTorch's own part does not
    monkeypatch.setattr(
        torch, 'compile', partial(torch.compile, backend='eager')
    )
    case = cases(name)
    setting = setting_of(case, 'slim')
    subject = backends.load(setting, str(case.slim), 'slim')
    with torch.no_grad():
        wanted = backends.prepare('eager', subject, 2, setting)()
        found = backends.prepare(backend, subject, 2, setting)()
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted):
        a = torch.from_numpy(a) if isinstance(a, np.ndarray) else a
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    size = (2, 3, *case.shape)
    assert backends.raw_network(subject, 2, setting)[1].shape == size


def test_many_networks_are_all_compiled(cases, monkeypatch):
    """PyTorch gives up on code after so many networks, and says little."""
    from torch import _dynamo

    need_compile()
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, 'compile', partial(torch.compile, backend=count)
    )
    monkeypatch.setattr(_dynamo.config, 'cache_size_limit', 1)
    case = cases('resnet')
    subjects = [
        backends.load(setting_of(case, form), str(case.pair(form)[1]), form)
        for form in ('full', 'slim')
    ]
    progress = tool.Progress(lambda text: None, 100, 0)
    comparison = tool.Comparison(
        setting_of(case), subjects, [1, 2], 1, progress, Clock()
    )
    monkeypatch.setattr(tool, 'ratios_to', lambda found, base: found)
    with torch.no_grad():
        comparison.times('compile', 1)
        assert len(compiled) == 2
        comparison.times('compile', 2)
    assert len(compiled) == 4


@pytest.mark.parametrize('backend', ['eager', 'onnxruntime'])
def test_half_precision(cases, backend):
    case = cases('resnet')
    setting = setting_of(case, half=True)
    subject = backends.load(setting, str(case.full), 'full')
    with torch.no_grad():
        wanted = backends.prepare('eager', subject, 2, setting_of(case))()
        found = backends.prepare(backend, subject, 2, setting)()
    torch.testing.assert_close(
        torch.as_tensor(found[0]).float(), wanted[0], atol=0.02, rtol=0
    )
    assert next(subject.model.parameters()).dtype == torch.float32
    network, images = backends.raw_network(subject, 2, setting)
    network, images = backends.in_precision(network, images, True)
    assert images.dtype == next(network.parameters()).dtype == torch.float16


def test_onnxruntime_without_a_gpu():
    with pytest.raises(ValueError, match=r'no CUDAExec.* onnxruntime-gpu'):
        check_provider('CUDAExecutionProvider')


def test_memory_is_that_of_another_process(cases):
    case = cases('resnet')
    progress = tool.Progress(lambda text: None, 1, 1)
    setting = setting_of(case, 'slim')
    subject = backends.load(setting, str(case.slim), 'slim')
    comparison = tool.Comparison(setting, [subject], [1], 1, progress, Clock())
    found = comparison.memory('slim')
    assert list(found) == ['1']
    assert 50 < found['1'] < 5000


# -- what comes out ----------------------------------------------------------


def times(backend: str, batch: int, *ms: float) -> dict:
    networks = {
        name: dict(
            ms=dict(median=value, least=value / 2, most=value * 1.5),
            ratio=spread([value / ms[0]]),
        )
        for name, value in zip(('baseline', 'flops_0.50'), ms)
    }
    return dict(backend=backend, batch=batch, networks=networks)


@pytest.fixture
def result() -> dict:
    baseline = dict(flops=4e9, acts=3e8, params=2e6)
    memory = {'1': 500.4, '16': 900.0}
    slim = {key: value / 2 for key, value in baseline.items()}
    return dict(
        machine=dict(
            device='a machine', threads='2', python='3', mmgfp='0', date='now'
        ),
        config='mmdet::retinanet/retinanet_r50.py',
        shape=[64, 96],
        half=True,
        rounds=7,
        networks={
            'baseline': dict(checkpoint='b.pth', **baseline, memory=memory),
            'flops_0.50': dict(checkpoint='s.pth', **slim, memory=memory),
        },
        times=[times('eager', 1, 120.0, 80.0), times('compile', 16, 4.0, 1.0)],
        modules=[
            dict(
                batch=16,
                networks={
                    'baseline': dict(backbone=0.5, head=0.4, rest=0.1),
                    'flops_0.50': dict(backbone=0.7, head=0.28, rest=0.02),
                },
            )
        ],
    )


def test_rows(result):
    (first, second), (_, last) = inference_rows(result)
    assert len(first) == len(HEADER)
    assert first == (
        *('baseline', '4.00 G 100%', '300.00 M 100%', '2.00 M 100%'),
        *('eager', '1', '120 (60 to 180)', '1.000 (1.000 to 1.000)', '500'),
    )
    assert second == (
        *('flops_0.50', '2.00 G  50%', '150.00 M  50%', '1.00 M  50%'),
        *('eager', '1', '80.0 (40.0 to 120.0)', '0.667 (0.667 to 0.667)'),
        '500',
    )
    assert last[4:7] == ('compile', '16', '1.00 (0.50 to 1.50)')
    assert last[-1] == '900'
    assert module_rows(result) == [
        ('network', 'batch', 'backbone', 'head', 'rest'),
        ('baseline', '16', '50.0%', '40.0%', '10.0%'),
        ('flops_0.50', '16', '70.0%', '28.0%', '2.0%'),
    ]


def test_tables(result):
    text, modules = map(render, inference_tables(result))
    assert 'retinanet_r50 on images of 64x96, half precision' in text
    for row in chain(*inference_rows(result)):
        assert any(
            all(cell in line for cell in row) for line in text.splitlines()
        )
    assert '70.0%' in modules
    assert len(inference_tables(dict(result, modules=[]))) == 1


def whole(picture: Path) -> bool:
    """Whether a PNG has its end, and more than one colour."""
    assert picture.read_bytes()[-8:-4] == b'IEND'
    return np.unique(matplotlib.image.imread(picture)).size > 10


def test_page(result, tmp_path):
    out = tmp_path / 'benchmarks'
    out.mkdir()
    file = out / 'inference_retinanet_r50_cuda.json'
    file.write_text(json.dumps(result))
    page = write_page(out).read_text()
    assert '## Inference of retinanet_r50 on a machine' in page
    assert '## Training' not in page and 'MMRazor' not in page
    row = ' | '.join(inference_rows(result)[1][1])
    assert f'| {row} |\n' in page
    assert '| baseline | 16 | 50.0% | 40.0% | 10.0% |' in page
    assert f'](benchmarks/{file.stem}.png)' in page
    assert whole(file.with_suffix('.png'))
    assert {p.name for p in out.iterdir()} == {
        *(file.name, f'{file.stem}.png')
    }
    assert 'Shares' not in inference_section(dict(result, modules=[]), '')


def test_many_networks_alike_are_drawn(result, tmp_path):
    names = [f'work_dirs/some/long/name_{i}' for i in range(30)]
    result['networks'] = dict.fromkeys(names, result['networks']['baseline'])
    one = result['times'][0]['networks']['baseline']
    result['times'][0]['networks'] = dict.fromkeys(names, one)
    result['times'] = result['times'][:1]
    draw_inference(result, tmp_path / 'x.png')
    assert whole(tmp_path / 'x.png')


@pytest.mark.parametrize(
    ('places', 'expected'),
    [
        ([0.2, 0.5], [0.2, 0.5]),
        ([0.2, 0.2, 0.25], [0.2, 0.3, 0.4]),
        ([0.5, 0.95, 0.95], [0.5, 0.9, 1.0]),
        ([0.9] * 3, [0.8, 0.9, 1.0]),
    ],
)
def test_names_do_not_overlap(places, expected):
    assert spread_out(places, 0.1) == pytest.approx(expected)
    crowd = spread_out([0.5] * 40, 0.1)
    assert np.diff(crowd) == pytest.approx([1 / 40] * 39)


# -- the command -------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Without processes of their own."""
    monkeypatch.setattr(tool, 'in_own_process', lambda f, *args: f(*args))


def test_command(cases, tmp_path, capsys, quick):
    case = cases('resnet')
    out = tmp_path / 'results'
    main(
        [
            *(str(case.config), str(case.full), str(case.slim)),
            *('--backend', 'eager', 'onnxruntime', '--batch', '2', '1', '2'),
            *('--rounds', '3', '--shape', '32', '32', '--modules'),
            *('--device', 'cpu', '--out', str(out), '--json', '-'),
        ]
    )
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    (file,) = out.glob('*.json')
    assert file.name == 'inference_config_cpu.json'
    assert json.loads(file.read_text()) == result
    assert 'flops' in printed.err and ' left' in printed.err
    assert whole(file.with_suffix('.png'))
    assert '## Inference of config' in (tmp_path / 'results.md').read_text()

    assert {'date', 'torch', 'device'} <= result['machine'].keys()
    assert list(result['networks']) == ['full', 'slim']
    for name in ('full', 'slim'):
        model = load_model(load_config(case.config), getattr(case, name))
        run = cost_runner(case.shape)
        cost = count_cost(model, record_calls(model, partial(run, model)))['']
        found = result['networks'][name]
        assert {k: found[k] for k in cost} == cost
        assert found['memory'].keys() == {'1', '2'}
    assert [(t['backend'], t['batch']) for t in result['times']] == [
        *(('eager', 2), ('eager', 1)),
        *(('onnxruntime', 2), ('onnxruntime', 1)),
    ]
    for part in result['modules']:
        for found in part['networks'].values():
            assert list(found) == ['backbone', 'neck', 'head', 'rest']
            assert all(0 <= share < 1 for share in found.values())
            assert sum(found.values()) == pytest.approx(1)


def refused(capsys, *options: object) -> str:
    with pytest.raises(SystemExit) as end:
        main([*map(str, options)])
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_that_do_not_fit(cases, tmp_path, capsys):
    case = cases('resnet')
    out = ['--out', tmp_path / 'results']
    # the generated config has room for its own network only
    text = refused(capsys, case.generated, case.slim, case.full, *out)
    assert text.startswith(f'error: the checkpoint {case.full} does not fit')
    assert 'has shape' in text
    text = refused(capsys, case.config, case.full, 'gone.pth', *out)
    assert text == 'error: the checkpoint gone.pth does not exist'
    assert not list(tmp_path.iterdir())


def test_no_compiler(cases, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError('no compiler\nand more')

    monkeypatch.setattr(torch, 'compile', broken)
    case = cases('resnet')
    text = refused(capsys, case.config, case.full, '--backend', 'compile')
    assert text == (
        'error: torch.compile does not work here: RuntimeError: no compiler'
    )
    with pytest.raises(backends.BackendError):
        main(
            [
                *(str(case.config), str(case.full)),
                *('--backend', 'compile', '--debug'),
            ]
        )


def test_a_network_that_a_backend_does_not_run(cases, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError('such an operation')

    monkeypatch.setattr(backends, 'write_onnx', broken)
    case = cases('resnet')
    options = ('--backend', 'onnxruntime', '--shape', 32, 32)
    text = refused(capsys, case.config, case.full, *options)
    assert text == (
        'error: onnxruntime does not run full on a batch of 1: '
        'ValueError: such an operation'
    )


def test_bad_options(capsys):
    given = ('config.py', 'a.pth')
    for option in ('--batch', '--rounds'):
        text = refused(capsys, *given, option, 0)
        assert f"{option}: '0': expected a whole number from 1" in text
    text = refused(capsys, *given, '--backend', 'tensorrt')
    assert "invalid choice: 'tensorrt'" in text
    assert 'CHECKPOINT' in refused(capsys, 'config.py').upper()


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    assert not end.value.code
    assert 'example: mmgfp benchmark' in capsys.readouterr().out
