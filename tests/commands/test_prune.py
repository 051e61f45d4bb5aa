"""Pruning at once, by weights alone, as a user's command."""

from __future__ import annotations

import pytest
import torch
from processes import run_tool
from toy import load, make_config, validated, write_config

from mmgfp import Structure
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.libraries.config import load_config
from mmgfp.libraries.forward import cost_runner
from mmgfp.libraries.models import build_model, load_model

SHAPE = 8, 8


@pytest.fixture
def trained(tmp_path):
    """A config without the pruning hook, and weights for it."""
    config = write_config(
        tmp_path / 'net.py',
        tmp_path / 'work',
        custom_hooks=[],
        model=dict(type='ToyClassifier', norm='BN'),
        **validated(),
    )
    torch.manual_seed(1)
    model = build_model(load_config(config))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'net.pth')
    return config, tmp_path / 'net.pth', tmp_path / 'out'


def flops(model) -> int:
    calls = record_calls(model, lambda: cost_runner(SHAPE)(model))
    return count_cost(model, calls)['']['flops']


@pytest.mark.parametrize('criterion', ['L1', 'FPGM', 'BNScale'])
def test_files_of_a_slim_network(trained, criterion):
    config, weights, out = trained
    done = run_tool(
        'prune.py',
        *(config, weights, '--out', out, '--criterion', criterion),
        *('--target', 'flops=0.6', '--shape', *SHAPE),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *('flops_0.60.json', 'flops_0.60.png', 'flops_0.60.pth'),
        'flops_0.60_finetune.py',
    ]
    full = load_model(load_config(config), weights)
    generated = out / 'flops_0.60_finetune.py'
    slim = load_model(load_config(generated), out / 'flops_0.60.pth')
    assert 0.4 < flops(slim) / flops(full) <= 0.6
    # what is left are slices of the weights there were
    structure = Structure.load(out / 'flops_0.60.json')
    structure.apply(full)
    for name, tensor in full.state_dict().items():
        assert torch.equal(tensor, slim.state_dict()[name])
    assert load(out / 'flops_0.60.pth').keys() == {
        *('meta', 'state_dict', 'mmgfp_structure'),
    }
    assert f'{flops(slim):,}' in done.stdout
    tested = run_tool('test.py', generated, out / 'flops_0.60.pth')
    assert tested.returncode == 0, tested.stderr


@pytest.mark.parametrize('search', ['Uniform', 'Knapsack', 'ITPruner'])
def test_widths_of_a_search(trained, search):
    config, weights, out = trained
    arguments = (
        *(config, weights, '--out', out, '--search', search),
        *('--target', 'flops=0.6', '--shape', *SHAPE),
    )
    done = run_tool('prune.py', *arguments)
    assert done.returncode == 0, done.stderr
    assert f'pruned by {search} and L1' in done.stdout
    assert 'channel group' in done.stdout  # the table of widths
    full = load_model(load_config(config), weights)
    slim = load_model(
        load_config(out / 'flops_0.60_finetune.py'), out / 'flops_0.60.pth'
    )
    assert 0.3 < flops(slim) / flops(full) <= 0.6
    given = run_tool('prune.py', *arguments, '--ratio', 'conv1=0.5')
    if search == 'Uniform':
        assert given.returncode == 0, given.stderr
        structure = Structure.load(out / 'flops_0.60.json')
        assert len(structure.keep['conv1.weight', 0]) == 6  # of 12
    else:
        assert given.returncode == 2
        assert 'without a search or with --search Uniform' in given.stderr


def test_layers_with_a_ratio_of_their_own(trained):
    config, weights, out = trained
    done = run_tool(
        'prune.py',
        *(config, weights, '--out', out, '--isomorphic'),
        *('--target', 'flops=0.6', '--shape', *SHAPE),
        *('--ratio', 'conv1=0.75'),
    )
    assert done.returncode == 0, done.stderr
    structure = Structure.load(out / 'flops_0.60.json')
    assert len(structure.keep['conv1.weight', 0]) == 9


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--target', 'flops'), "'flops': expected one of flops, params"),
        (('--target', 'latency=0.5'), 'expected one of flops, params'),
        (('--target', 'flops=1.5'), 'expected a ratio strictly between 0'),
        (('--target', 'flops=0.01'), 'cannot be reached'),
        (('--target', 'flops=0.5', '--criterion', 'Fisher'), 'needs training'),
        (('--target', 'flops=0.5', '--criterion', 'Randm'), "'Random'"),
        (('--target', 'flops=0.5', '--search', 'DCSS'), 'use SearchHook'),
        (('--target', 'flops=0.5', '--search', 'Unifrom'), "mean 'Uniform'"),
        (
            ('--target', 'flops=0.5', '--search-options', 'images=9'),
            "{'images': 9} needs --search",
        ),
        (
            (
                *('--target', 'flops=0.5', '--search', 'ITPruner'),
                *('--search-options', 'images=2'),
            ),
            'images=2: expected a whole number',
        ),
        (
            (
                *('--target', 'flops=0.5', '--search', 'ITPruner'),
                *('--search-options', 'image=20'),
            ),
            "did you mean 'images'",
        ),
        (('--target', 'flops=0.5', '--ignore', 'none'), 'none'),
        (('--target', 'flops=0.5', '--ratio', 'conv1'), "'conv1': expected a"),
        (('--target', 'flops=0.5', '--ratio', 'fc=0.5'), 'matches no layer'),
        (('--target', 'flops=0.5', '--ratio', 'stem=2'), 'between 0 and 1'),
    ],
)
def test_bad_input(trained, options, message):
    config, weights, out = trained
    done = run_tool(
        'prune.py', config, weights, '--out', out, '--shape', *SHAPE, *options
    )
    assert done.returncode and message in done.stderr
    assert done.stderr.splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in done.stderr and 'usage' not in done.stderr
    assert not out.exists()


def test_a_slim_checkpoint_is_refused(trained):
    config, weights, out = trained
    settings = '--out', out, '--shape', *SHAPE, '--target', 'flops=0.6'
    assert not run_tool('prune.py', config, weights, *settings).returncode
    slim = out / 'flops_0.60.pth'
    done = run_tool('prune.py', config, slim, *settings)
    assert done.returncode and 'is pruned already' in done.stderr


def test_it_needs_no_data(trained, tmp_path):
    config, weights, out = trained
    made = make_config(tmp_path / 'work', custom_hooks=[])
    made.pop('train_dataloader')
    made.model.norm = 'BN'
    made.dump(config)
    done = run_tool(
        'prune.py',
        *(config, weights, '--out', out, '--target', 'flops=0.6'),
        *('--shape', *SHAPE),
    )
    assert done.returncode == 0, done.stderr
