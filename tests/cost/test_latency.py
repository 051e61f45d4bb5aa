"""Latency tables: what is measured, interpolated and saved per channel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from nets import Chain, GroupedConv, InvertedResidual, Residual, run
from nets_kernels import Filters
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse import csr_matrix
from torch import nn
from toy import make_config, train

from mmgfp.commands import latency_table
from mmgfp.cost.latency import LatencyModel, LatencyTable, Measured
from mmgfp.cost.model import CostModel, record_calls
from mmgfp.cost.operations import Operation, record_operations, run_operation
from mmgfp.cost.polynomial import Cost
from mmgfp.engine.hook import FisherPruningHook
from mmgfp.slimming.structure import Structure
from mmgfp.tracing.finder import find_groups

NETS = [Chain, Residual, InvertedResidual, GroupedConv, Filters]
SHARES = (0, 0.3, 0.5, 1)


class Kinds(nn.Module):
    """One layer of every kind that is measured."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.up_grouped = nn.ConvTranspose2d(6, 8, 3, 2, 1, 1, groups=2)
        self.line = nn.Conv1d(8, 5, 3)
        self.fc = nn.Linear(5, 7)
        self.bare = nn.Linear(7, 4, bias=False)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.plain(x)))
        x = self.up_grouped(self.up(x)).flatten(2)
        return self.bare(self.fc(self.line(x).mean(2)))


def recorded(model, shape=(2, 3, 16, 16)):
    x = torch.rand(shape)
    return record_operations(model.eval(), lambda: model(x))


def table_of(model, operations, milliseconds, whole):
    """A table whose times are what a function of the widths says."""
    distinct = list(
        dict.fromkeys(op for ops in operations.values() for op in ops)
    )
    measured = []
    for operation in distinct:
        first, second = operation.widths(SHARES)
        ms = [[milliseconds(operation, a, b) for b in second] for a in first]
        measured.append(Measured(first, second, ms))
    return LatencyTable(
        {name: tuple(model.get_parameter(name).shape) for name in operations},
        {
            n: [distinct.index(op) for op in ops]
            for n, ops in operations.items()
        },
        measured,
        whole,
    )


# -- what is measured --------------------------------------------------------


def test_every_kind_of_layer_is_recorded():
    model = Kinds()
    found = recorded(model)
    assert set(found) == {
        f'{name}.weight' for name, _ in model.named_children()
    }
    assert all(len(operations) == 1 for operations in found.values())
    (plain,) = found['plain.weight']
    assert plain.weight == (8, 3, 3, 3)
    assert plain.source == (2, 3, 16, 16)
    assert plain.settings == ((2, 2), (1, 1), (1, 1), False, (0, 0), 1)
    assert not plain.bias
    (fc,) = found['fc.weight']
    assert fc == Operation((7, 5), (2, 5), (), True)


@pytest.mark.parametrize('name', [n for n, _ in Kinds().named_children()])
def test_full_width_is_the_layer_itself(name):
    model = Kinds().eval()
    layer = getattr(model, name)
    seen = []
    layer.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    (operation,) = recorded(model)[f'{name}.weight']
    sizes = layer.weight.shape[:2]
    _, weight, bias, settings = operation.inputs(*sizes)
    assert weight.shape == layer.weight.shape
    assert (bias is None) == (layer.bias is None)
    source, expected = seen[0]
    out = run_operation(source, layer.weight, layer.bias, settings)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('name', [n for n, _ in Kinds().named_children()])
def test_all_widths_run(name):
    (operation,) = recorded(Kinds())[f'{name}.weight']
    first, second = operation.widths(SHARES)
    assert (first[-1], second[-1]) == operation.weight[:2]
    assert len(first) > 1
    assert (len(second) > 1) == (operation.groups == 1)
    for a in first:
        for b in second:
            out = run_operation(*operation.inputs(a, b))
            assert out.isfinite().all()


def test_grouped_convolutions_lose_whole_groups():
    model = Kinds()
    (operation,) = recorded(model)['grouped.weight']
    assert operation.widths((0, 0.5, 1)) == ([3, 6, 12], [2])
    source, weight, _, settings = operation.inputs(6, 2)
    assert source.shape[1] == 4
    assert weight.shape[0] == 6
    assert settings[5] == 2


def test_shared_layers_have_several_calls():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.head(x), self.head(F.avg_pool2d(x, 2))

    (operations,) = recorded(Shared()).values()
    assert [op.source[2] for op in operations] == [16, 8]


def no_units(parameters):
    return [csr_matrix((0, parameters))] * 2


# -- what the table says -----------------------------------------------------


def test_interpolation():
    """Against scipy's, one grid at a time."""
    rng = np.random.default_rng(0)
    grids = []
    for p, q in ((3, 4), (5, 2), (4, 1), (2, 5)):
        nodes = [np.sort(rng.choice(40, n, False) + 1) for n in (p, q)]
        ms = rng.random((p, q)).cumsum(0).cumsum(1)
        grids.append(
            Measured(nodes[0].tolist(), nodes[1].tolist(), ms.tolist())
        )
    names = [str(i) for i in range(len(grids))]
    table = LatencyTable({}, {n: [i] for i, n in enumerate(names)}, grids, 0.0)
    model = LatencyModel(table, names, no_units(len(names)), acts=1.0)
    for _ in range(20):
        widths = np.array(
            [
                [rng.integers(nodes[0], nodes[-1] + 1) for nodes in both]
                for both in (
                    [g.first for g in grids],
                    [g.second for g in grids],
                )
            ],
            float,
        )
        expected = 0.0
        for grid, a, b in zip(grids, *widths, strict=True):
            nodes, ms = [grid.first, grid.second], np.array(grid.ms)
            if len(grid.second) == 1:
                expected += np.interp(a, grid.first, ms[:, 0])
            else:
                expected += RegularGridInterpolator(nodes, ms)([a, b])[0]
        assert model.total(widths, 1.0) == pytest.approx(expected)


def test_noise_is_smoothed():
    grid = Measured([1, 4, 8], [1, 8], [[1, 5], [3, 4], [2, 6]])
    table = LatencyTable({}, {'a': [0]}, [grid], 0.0)
    model = LatencyModel(table, ['a'], no_units(1), 1.0)

    def at(a, b):
        return model.total(np.array([[a], [b]], float), 0.0)

    assert [at(1, 1), at(4, 1), at(8, 1)] == [1, 3, 3]
    assert [at(1, 8), at(4, 8), at(8, 8)] == [5, 5, 6]


def cost_of(net, milliseconds, rest=0.0):
    """A cost model with a table made of a function of the widths."""
    torch.manual_seed(0)
    model = net().eval()
    x = net.batch()
    groups = [g for g in find_groups(model, run, 2) if not g.frozen]
    calls = record_calls(model, lambda: model(x), images=2)
    operations = recorded(model, x.shape)
    table = table_of(model, operations, milliseconds, whole=0.0)
    table = LatencyTable(
        table.shapes, table.calls, table.operations, table.layers + rest
    )
    return model, groups, CostModel(model, groups, calls, table), table


def products(operation, a, b):
    """Proportional to the flops of a plain layer."""
    return float(a * b * np.prod(operation.weight[2:], initial=1))


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('rest', [0.0, 500.0])
def test_marginal_is_the_difference_of_totals(net, rest):
    rng = np.random.default_rng(0)
    model, groups, cost, table = cost_of(
        net, lambda op, a, b: products(op, a, b) + 20 * a + 7 * b, rest
    )
    assert cost.total()['latency'] == pytest.approx(table.full)
    assert len(table.calls) == sum(
        isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()
    )
    for _ in range(3):
        for g, saves in enumerate(cost.marginal('latency')):
            one = np.zeros(len(groups))
            one[g] = 1
            saved = cost.total()['latency'] - cost.after_cut(one)['latency']
            assert saved == pytest.approx(saves), groups[g].name
            assert saved > 0
        left = [rng.integers(0, max(1, g.size // 3)) for g in groups]
        cost.cut(np.array(left))


@pytest.mark.parametrize('net', NETS)
def test_expected_latency_and_its_slopes(net):
    """Totals at whole widths; finite differences between them."""
    rng = np.random.default_rng(0)
    _, groups, model, table = cost_of(
        net, lambda op, a, b: products(op, a, b) + 20 * a + 7 * b**0.5, 500.0
    )
    sizes = np.array([group.size for group in groups])
    cost = Cost(model, sizes)
    cut = np.array([rng.integers(0, size) for size in sizes])
    found = cost(torch.from_numpy(np.stack([sizes, sizes - cut])))
    expected = [table.full, model.after_cut(cut)['latency']]
    assert found['latency'].tolist() == pytest.approx(expected)
    assert model.total()['latency'] == pytest.approx(table.full)

    def latency(widths: torch.Tensor) -> torch.Tensor:
        return cost(widths)['latency']

    # measured widths are whole numbers, where the slope changes
    widths = torch.from_numpy(sizes * 0.5 + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(latency, widths, eps=1e-3, rtol=1e-4)


def test_latency_that_goes_with_flops():
    """Positions are those of one size, so both shares are the same."""
    _, groups, cost, table = cost_of(Chain, products)
    before = cost.total()
    left = cost.after_cut(np.array([g.size // 2 for g in groups]))
    share = left['flops'] / before['flops']
    assert left['latency'] / table.full == pytest.approx(share)


def test_the_rest_goes_with_activations():
    _, groups, cost, _ = cost_of(Chain, lambda *_: 0.0, rest=8.0)
    before = cost.total()
    left = cost.after_cut(np.array([g.size // 2 for g in groups]))
    share = left['acts'] / before['acts']
    assert left['latency'] == pytest.approx(8 * share)


# -- files -------------------------------------------------------------------


def test_round_trip(tmp_path):
    _, _, _, table = cost_of(Residual, products, 3.0)
    table.save(tmp_path / 'table.json')
    again = LatencyTable.load(tmp_path / 'table.json')
    assert again == table
    assert [p.name for p in tmp_path.iterdir()] == ['table.json']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'not valid JSON'),
        ('[' * 100_000, 'not valid JSON'),
        ('[]', 'a list is not a mapping'),
        ('{"format": "mmgfp-structure", "version": 1}', "'mmgfp-structure'"),
        ('{"format": "mmgfp-latency", "version": 9}', 'version 9'),
        ('{"format": "mmgfp-latency", "version": 1}', "'shapes'"),
    ],
)
def test_damaged(tmp_path, text, message):
    file = tmp_path / 'table.json'
    file.write_text(text)
    with pytest.raises(
        ValueError, match='is not a table of this mmgfp'
    ) as info:
        LatencyTable.load(file)
    assert message in str(info.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(whole='NaN'), 'is not a number'),
        (dict(calls={'a.weight': [1]}), 'a.weight was not measured'),
        (dict(calls={'b.weight': [0]}), 'b.weight was not measured'),
        (dict(calls={'a.weight': [-1]}), '-1 is not a natural number'),
        (dict(operations=[dict(first=[2, 1], second=[1], ms=[[1], [1]])]),
         'the 2 widths are not ascending'),
        (dict(operations=[dict(first=[], second=[1], ms=[])]), '0 widths'),
        (dict(operations=[dict(first=[*range(1, 9999)], second=[1], ms=[])]),
         '9998 widths'),
        (dict(operations=[dict(first=[1], second=[1, 2], ms=[[1]])]),
         'the times and the widths differ in number'),
        (dict(operations=[dict(first=[1], second=[1], ms=[[10**400]])]),
         'is not a number'),
        (dict(about=None), 'None is not a mapping'),
    ],
)  # fmt: skip
def test_damaged_parts(tmp_path, change, message):
    table = dict(
        format='mmgfp-latency',
        version=1,
        shapes={'a.weight': [2, 3]},
        calls={'a.weight': [0]},
        operations=[dict(first=[1, 2], second=[3], ms=[[1.0], [2.0]])],
        whole=2.0,
        about={},
    )
    file = tmp_path / 'table.json'
    file.write_text(json.dumps(table))
    assert LatencyTable.load(file).layers == 2
    file.write_text(json.dumps(dict(table, **change)))
    with pytest.raises(
        ValueError, match='is not a table of this mmgfp'
    ) as info:
        LatencyTable.load(file)
    assert message in str(info.value)


def test_other_network():
    _, _, _, table = cost_of(Chain, products)
    other = {'conv1.weight': (9, 3, 3, 3)}
    with pytest.raises(ValueError, match=r'conv1\.weight of shape \(8, 3'):
        table.check(other)


# -- the tool and the hook ---------------------------------------------------


@pytest.fixture
def toy_config(tmp_path):
    config = make_config(tmp_path)
    config.custom_hooks = []
    config.test_dataloader = dict(
        dataset=dict(pipeline=[dict(type='Resize', scale=(16, 16))])
    )
    path = tmp_path / 'toy_config.py'
    config.dump(path)
    return str(path)


def test_interrupted_measuring_goes_on(toy_config, tmp_path, monkeypatch):
    out = tmp_path / 'table.json'
    args = [toy_config, '--out', str(out), '--shape', '16', '16', '--rounds=1']
    seen = []
    measure = latency_table.operation_ms

    def counted(operation, *rest):
        seen.append(operation)
        if len(seen) == 60 and len(set(seen)) > 1:
            raise KeyboardInterrupt
        return measure(operation, *rest)

    monkeypatch.setattr(latency_table, 'operation_ms', counted)
    with pytest.raises(SystemExit) as end:
        latency_table.main(args)
    assert end.value.code == 130
    assert not out.exists()
    before = set(seen[:-1])
    unfinished = seen[-1]
    seen[:] = [None] * 60  # no second time
    latency_table.main(args)
    again = set(seen[60:])
    assert again & before <= {unfinished}
    assert len(before) > 1
    table = LatencyTable.load(out)
    assert len(table.operations) == len(before | again)
    assert table.whole > 0
    assert [check['removed'] for check in table.about['checks']] == [
        *(0.25, 0.5, 0.75)
    ]
    assert not list(tmp_path.glob('*.measured'))


@pytest.mark.parametrize(
    ('layers', 'predicted', 'words'),
    [
        (1.0, 0.55, []),
        (1.4, 0.55, ['add up to 1.40 times']),
        (1.0, 0.7, ['wrong by up to 0.20']),
        (1.4, 0.3, ['add up to 1.40 times', 'wrong by up to 0.20']),
    ],
)
def test_tables_of_a_busy_machine_are_doubted(layers, predicted, words):
    table = LatencyTable(
        {'conv.weight': (1, 1)},
        {'conv.weight': [0]},
        [Measured([1], [1], [[10 * layers]])],
        whole=10.0,
    )
    checks = [dict(removed=0.5, predicted=predicted, measured=0.5)]
    found = latency_table.doubts(table, checks)
    assert len(found) == len(words)
    for doubt, word in zip(found, words):
        assert word in doubt and 'measure again' in doubt


def test_pruning_for_latency(toy_config, tmp_path, monkeypatch):
    """With times that are reckoned: measured ones may not reach a target."""
    out = tmp_path / 'table.json'
    monkeypatch.setattr(
        latency_table, 'operation_ms', lambda op, a, b, *_: products(op, a, b)
    )
    monkeypatch.setattr(latency_table, 'whole_network', lambda *_: 1.0)
    latency_table.main(
        [toy_config, '--out', str(out), '--shape', '8', '8', '--rounds=1']
    )
    hook = dict(
        target=dict(latency=0.7),
        normalize_by='latency',
        latency_table=str(out),
        after_target='train',
    )
    train(tmp_path / 'run', hook=hook)
    structure = Structure.load(tmp_path / 'run' / 'latency_0.70.json')
    table = LatencyTable.load(out)
    assert structure.cost_before['latency'] == pytest.approx(table.full)
    assert structure.ratio('latency') <= 0.7
    assert structure.ratio('flops') < 1
    # goes on from there, with the table of the full network
    hook['target'] = dict(latency=0.5)
    train(
        tmp_path / 'more',
        hook=hook,
        load_from=str(tmp_path / 'run' / 'latency_0.70.pth'),
    )
    more = Structure.load(tmp_path / 'more' / 'latency_0.50.json')
    assert more.ratio('latency') <= 0.5
    assert more.cost_before == structure.cost_before
    # and without the table, by what can be counted
    runner = train(
        tmp_path / 'flops',
        hook=dict(target=dict(flops=0.4)),
        load_from=str(tmp_path / 'run' / 'latency_0.70.pth'),
    )
    last = Structure.load(tmp_path / 'flops' / 'flops_0.40.json')
    assert last.cost_before.keys() == {'flops', 'params', 'acts'}
    assert last.cost_after.keys() == last.cost_before.keys()
    assert last.cost_before['flops'] == structure.cost_before['flops']
    assert last.ratio('flops') <= 0.4
    assert (tmp_path / 'flops' / 'flops_0.40.png').exists()
    (log,) = (tmp_path / 'flops').glob('*/*.log')
    assert 'its latency is not logged or saved' in log.read_text()
    # a table brings it back
    train(
        tmp_path / 'again',
        hook=dict(hook, target=dict(latency=0.3)),
        load_from=str(Path(runner.work_dir, 'flops_0.40.pth')),
    )
    again = Structure.load(tmp_path / 'again' / 'latency_0.30.json')
    assert again.cost_before == structure.cost_before


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(normalize_by='latency'), ValueError, 'needs latency_table'),
        (dict(target=dict(latency=0.5)), ValueError, 'needs latency_table'),
        (dict(latency_table='a.json'), ValueError, 'is not used'),
        (
            dict(normalize_by='latency', latency_table='/no/such.json'),
            FileNotFoundError,
            "'/no/such.json' does not exist",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    arguments = {'target': dict(flops=0.5), **arguments}
    with pytest.raises(error, match=message):
        FisherPruningHook(**arguments)


def test_table_of_another_network(toy_config, tmp_path):
    out = tmp_path / 'table.json'
    _, _, _, table = cost_of(Chain, products)
    table.save(out)
    hook = dict(normalize_by='latency', latency_table=str(out))
    with pytest.raises(ValueError, match='table is for another network'):
        train(tmp_path / 'run', hook=hook)


def test_json_is_plain(tmp_path):
    _, _, _, table = cost_of(Chain, products)
    table.save(tmp_path / 'table.json')
    data = json.loads((tmp_path / 'table.json').read_text())
    assert data['format'] == 'mmgfp-latency'
    assert data['shapes']['conv1.weight'] == [8, 3, 3, 3]
