"""Single weights are pruned inside a runner, and stay zero."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from processes import run_tool
from torch import nn
from toy import (
    ToyClassifier,
    load,
    loader,
    make_config,
    raw_outputs,
    validated,
)

from mmgfp import SparsityHook, Structure, build_pruned_model
from mmgfp.cost.model import count_cost, record_calls
from mmgfp.engine.calibration import calibrate
from mmgfp.engine.prunable_weights import outputs_first, prunable_weights
from mmgfp.engine.runner import averaged_models
from mmgfp.engine.sparse_state import (
    SPARSITY_KEY,
    read_sparse_state,
    sparse_state,
)
from mmgfp.groups import UnitSpace
from mmgfp.libraries.models import load_model
from mmgfp.registry import CRITERIA
from mmgfp.search.sparsity import Shapes
from mmgfp.slimming.element_masks import WeightMasks
from mmgfp.slimming.structure import KEY

NAMES = [
    *('stem.weight', 'conv1.weight', 'depthwise.weight', 'conv2.weight'),
    'head.weight',
]
SIZE = 216 + 864 + 108 + 96 + 40
STEM = 'density_0.30'
MOMENTUM = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01)
)
ADAMW = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1))
EMA = dict(type='EMAHook', momentum=0.2)
EVERY_EPOCH = dict(checkpoint=dict(type='CheckpointHook', interval=1))


def sparse_config(
    work_dir, *hooks: dict, hook: dict | None = None, **kwargs: Any
) -> Config:
    config = make_config(work_dir, **kwargs)
    pruning = dict(
        type='mmgfp.SparsityHook',
        density=0.3,
        criterion=dict(type='Magnitude'),
        after_target='train',
        input_shape=(8, 8),
    )
    pruning.update(hook or {})
    if 'pattern' in pruning:
        del pruning['density']
    config.custom_hooks = [pruning, *hooks]
    return config


def train(config: Config) -> Runner:
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def hook_of(runner: Runner) -> SparsityHook:
    (hook,) = [h for h in runner.hooks if isinstance(h, SparsityHook)]
    return hook


def zeros(state: dict) -> dict[str, np.ndarray]:
    return {name: (state[name] == 0).numpy() for name in NAMES}


def count(masks: dict[str, np.ndarray]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


# -- against masks that are multiplied by hand ---------------------------


@HOOKS.register_module(force=True)
class MultipliesByHand(Hook):
    """Prunes the smallest weights, and multiplies by masks ever after."""

    def before_train(self, runner: Runner) -> None:
        model = runner.model
        weights = [model.get_parameter(name) for name in NAMES]
        flat = torch.cat([w.detach().abs().flatten() for w in weights])
        order = flat.argsort(stable=True)
        kept = torch.ones(len(flat))
        kept[order[: SIZE - round(0.3 * SIZE)]] = 0
        sizes = [w.numel() for w in weights]
        masks = [
            part.view_as(w) for part, w in zip(kept.split(sizes), weights)
        ]
        copies = [a.module for a in averaged_models(runner)]
        for other in (model, *copies):
            for name, mask in zip(NAMES, masks):
                other.get_parameter(name).data.mul_(mask)
        optimizer = runner.optim_wrapper.optimizer

        def before(*_: Any) -> None:
            for weight, mask in zip(weights, masks):
                weight.grad.mul_(mask)

        def after(*_: Any) -> None:
            for weight, mask in zip(weights, masks):
                weight.data.mul_(mask)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


@pytest.mark.parametrize(
    'changes, hooks',
    [
        (dict(optim_wrapper=MOMENTUM), []),
        (dict(optim_wrapper=ADAMW), [EMA]),
        (dict(optim_wrapper=ADAMW), [dict(EMA, update_buffers=True)]),
        (dict(optim_wrapper=dict(MOMENTUM, type='CpuAmpOptimWrapper')), []),
        (
            dict(
                optim_wrapper=dict(MOMENTUM, accumulative_counts=2),
                train_dataloader=loader(size=64),
                model=dict(type='ToyClassifier', norm='BN'),
            ),
            [],
        ),
    ],
    ids=['sgd', 'adamw-ema', 'ema-buffers', 'amp', 'accumulation'],
)
def test_training_equals_masks_multiplied_by_hand(tmp_path, changes, hooks):
    changes = dict(changes, train_cfg=dict(by_epoch=True, max_epochs=2))
    runner = train(sparse_config(tmp_path / 'hook', *hooks, **changes))
    config = make_config(tmp_path / 'hand', **changes)
    config.custom_hooks = [*hooks, dict(type='MultipliesByHand')]
    expected = train(config)
    pairs = [(runner.model, expected.model)]
    for ours, theirs in zip(
        averaged_models(runner), averaged_models(expected)
    ):
        pairs.append((ours.module, theirs.module))
    assert len(pairs) == 1 + len(hooks)
    for ours, theirs in pairs:
        assert count(zeros(ours.state_dict())) == SIZE - round(0.3 * SIZE)
        for name, tensor in theirs.state_dict().items():
            assert tensor.equal(ours.state_dict()[name]), name


# -- steps ---------------------------------------------------------------


@HOOKS.register_module(force=True)
class ZerosLog(Hook):
    """Notes which weights are zero after every iteration."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        self.seen = [zeros(runner.model.state_dict())]

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        self.seen.append(zeros(runner.model.state_dict()))


def seen(runner: Runner) -> list[dict[str, np.ndarray]]:
    (hook,) = [h for h in runner.hooks if isinstance(h, ZerosLog)]
    return hook.seen


def test_every_step_keeps_the_same_share(tmp_path):
    log = dict(type='ZerosLog')
    hook = dict(steps=3, interval=4)
    runner = train(sparse_config(tmp_path, log, hook=hook))
    masks = seen(runner)
    goals = [SIZE - round(SIZE * 0.3 ** (t / 3)) for t in (1, 2, 3)]
    expected = [goals[0]] * 4 + [goals[1]] * 4 + [goals[2]] * 17
    assert list(map(count, masks)) == expected
    for before, after in pairwise(masks):
        assert all(after[name][before[name]].all() for name in NAMES)
    assert hook_of(runner).done == 3
    assert (tmp_path / f'{STEM}.pth').is_file()


def test_accumulated_iterations_are_one_step(tmp_path):
    runner = train(
        sparse_config(
            tmp_path,
            dict(type='ZerosLog'),
            hook=dict(steps=2, interval=2),
            optim_wrapper=dict(MOMENTUM, accumulative_counts=2),
            train_dataloader=loader(size=64),
            train_cfg=dict(by_epoch=True, max_epochs=1),
        )
    )
    counts = list(map(count, seen(runner)))
    half, all_of_it = (SIZE - round(SIZE * 0.3 ** (t / 2)) for t in (1, 2))
    assert counts == [half] * 4 + [all_of_it] * 5


def test_it_stops_when_the_density_is_reached(tmp_path):
    hook = dict(after_target='stop')
    runner = train(sparse_config(tmp_path, hook=hook, log_level='INFO'))
    assert runner.iter == 0
    assert (tmp_path / f'{STEM}.pth').is_file()
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert 'step 1 of 1' in text
    assert 'training ends after this epoch' not in text
    assert 'nothing is trained: the run ends here' in text


@CRITERIA.register_module(force=True)
class Gradients(CRITERIA.get('Magnitude')):
    """Scores from batches that the network trains on."""

    when = 'training'

    def attach(self, model, units) -> None:
        super().attach(model, units)
        self.batches = 0
        self._handle = model.register_forward_hook(self.see)

    def see(self, *_: Any) -> None:
        self.batches += 1

    def detach(self) -> None:
        self._handle.remove()


def test_criteria_that_observe_training_have_an_interval_before(tmp_path):
    runner = train(
        sparse_config(
            tmp_path,
            dict(type='ZerosLog'),
            hook=dict(criterion=dict(type='Gradients'), interval=5),
        )
    )
    counts = list(map(count, seen(runner)))
    assert counts == [0] * 5 + [SIZE - round(0.3 * SIZE)] * 20
    assert hook_of(runner).criterion.batches == 5


# -- K-FAC ---------------------------------------------------------------

KFAC = dict(type='KFAC', batches=2, fisher='empirical')


def test_weights_of_least_growth_of_the_loss_go(tmp_path):
    assert type(SparsityHook(density=0.3).criterion).__name__ == 'KFAC'
    runner = train(
        sparse_config(tmp_path / 'a', hook=dict(criterion=KFAC, density=0.5))
    )
    other = Runner.from_cfg(sparse_config(tmp_path / 'b'))
    other.train_loop  # noqa: B018 - builds it
    criterion = CRITERIA.build(KFAC)
    calibrate(other, criterion, UnitSpace([]))
    scores = criterion.elements(NAMES)
    flat = torch.cat([scores[name].flatten() for name in NAMES])
    gone = torch.zeros(SIZE, dtype=torch.bool)
    gone[flat.argsort(stable=True)[: SIZE - round(0.5 * SIZE)]] = True
    found = torch.cat(
        [
            torch.from_numpy(mask).flatten()
            for mask in zeros(runner.model.state_dict()).values()
        ]
    )
    assert found.equal(gone)
    assert not hook_of(runner).criterion._sums  # they take much memory


class AtStart(Hook):
    """Keeps the weights of a network and its average before training."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        networks = [runner.model, *(a.module for a in averaged_models(runner))]
        self.states = [copy.deepcopy(net.state_dict()) for net in networks]


def test_weights_that_stay_replace_those_that_go(tmp_path):
    log = AtStart()
    hook = dict(criterion=KFAC, density=0.5, compensate=True)
    runner = Runner.from_cfg(sparse_config(tmp_path / 'a', EMA, hook=hook))
    runner.register_hook(log)
    runner.train()
    other = Runner.from_cfg(sparse_config(tmp_path / 'b'))
    other.train_loop  # noqa: B018 - builds it
    criterion = CRITERIA.build(KFAC)
    criterion.compensates = True
    calibrate(other, criterion, UnitSpace([]))
    masks = hook_of(runner).masks.pruned
    expected = other.model.state_dict()
    expected |= criterion.compensated(masks)
    assert 'head.bias' in criterion.compensated(masks)
    for state in log.states:  # the average begins as the network does
        for name in other.model.state_dict():
            torch.testing.assert_close(
                state[name], expected[name].to(state[name])
            )
        assert all(not state[name][gone].any() for name, gone in masks.items())


def test_calibration_between_steps_leaves_training_as_it_is(tmp_path):
    hook = dict(criterion=KFAC, steps=2, interval=6)
    runner = train(sparse_config(tmp_path, hook=hook, optim_wrapper=MOMENTUM))
    state = runner.optim_wrapper.optimizer.state
    for name in NAMES:
        weight = runner.model.get_parameter(name)
        assert weight.requires_grad
        gone = hook_of(runner).masks.pruned[name]
        assert gone.any() and not weight[gone].any()
        assert not state[weight]['momentum_buffer'][gone].any()
        assert state[weight]['momentum_buffer'][~gone].all()


# -- what goes together --------------------------------------------------


@MODELS.register_module(force=True)
class Attending(ToyClassifier):
    """With layers whose weights are read or computed, not called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.utils.weight_norm(self.conv2)
        self.norm0.register_forward_hook(self._attend)

    def _attend(self, module: nn.Module, args: Any, out: torch.Tensor) -> Any:
        tokens = out.flatten(2).transpose(1, 2)
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return found.transpose(1, 2).view_as(out)


@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_weights_whose_curvature_cannot_be_measured_stay(tmp_path):
    config = sparse_config(
        tmp_path,
        model=dict(type='Attending'),
        hook=dict(criterion=KFAC, density=0.3),
        log_level='INFO',
    )
    train(config)
    density = Structure.load(tmp_path / 'density_0.30.json').density
    assert {name.partition('.')[0] for name in density} == {
        *('stem', 'conv1', 'depthwise', 'head'),
    }
    text = ''.join(f.read_text() for f in tmp_path.rglob('*.log'))
    assert (
        'attention'
        in text.split('are no plain convolutions')[1].split('\n')[0]
    )


@HOOKS.register_module(force=True)
class Diverge(Hook):
    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any):
        if runner.iter == 3:
            runner.model.conv1.weight.data[0, 0] = float('nan')


@pytest.mark.parametrize('criterion', [KFAC, dict(type='Magnitude')])
def test_training_that_diverges_is_named(tmp_path, criterion):
    config = sparse_config(
        tmp_path,
        dict(type='Diverge'),
        hook=dict(steps=2, interval=6, criterion=criterion),
    )
    with pytest.raises(ValueError, match=r'not finite after \d+ iterations'):
        train(config)


@pytest.mark.parametrize(
    'criterion, compensate, layers',
    [
        (dict(formula='OBS'), False, 1),
        (dict(), True, 1),
        # the diagonals that it measures have no limit
        (dict(), False, 0),
    ],
)
def test_approximate_curvature_is_logged(
    tmp_path, criterion, compensate, layers
):
    """Inputs with the kernel and the bias: 28, 73, 10, 13 and 9."""
    hook = dict(criterion=dict(KFAC, limit=28, **criterion), density=0.3)
    hook.update(compensate=compensate)
    train(sparse_config(tmp_path, hook=hook, log_level='INFO'))
    text = ''.join(f.read_text() for f in tmp_path.rglob('*.log'))
    line = 'measurements of 1 layers are approximate'
    assert text.count(line) == text.count('KFAC: conv1\n') == layers


def test_layers_whose_groups_the_pattern_does_not_divide():
    """Weights of a transposed one have the inputs of all groups in a row."""
    model = nn.Sequential(
        nn.ConvTranspose2d(8, 8, 1, groups=4),
        nn.ConvTranspose2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, groups=4),
        nn.Conv2d(8, 8, 1, groups=2),
    )

    def run(network):
        return network(torch.ones(1, 8, 2, 2))

    calls = record_calls(model, lambda: run(model))
    found = prunable_weights(
        *(model, calls, run, (), Shapes(pattern=(2, 4))), False, print
    )
    assert found == {'1.weight': 1, '3.weight': 0}


def test_weights_in_half_precision():
    weight = torch.tensor([[1.0, 2], [3, 4]], dtype=torch.bfloat16)
    expected = np.array([[1, 3], [2, 4]], np.float32)
    np.testing.assert_array_equal(outputs_first(weight, 1), expected)


def test_layers_that_stay_whole(tmp_path):
    config = sparse_config(
        tmp_path,
        hook=dict(ignore=['conv1', 'h?ad'], pattern='2:4'),
        log_level='INFO',
    )
    train(config)
    density = Structure.load(tmp_path / 'density_0.50.json').density
    # 3 inputs, and one for each output of the depthwise convolution
    text = ''.join(f.read_text() for f in tmp_path.rglob('*.log'))
    assert 'that the pattern does not divide: stem, depthwise' in text
    assert density == {'conv2.weight': (96, 48)}


def test_blocks_and_patterns(tmp_path):
    hook = dict(pattern='2:4', block=(4, 1))
    runner = train(sparse_config(tmp_path, hook=hook))
    masks = zeros(runner.model.state_dict())
    assert not masks['stem.weight'].any()
    conv = masks['conv1.weight'].reshape(3, 4, 2, 4, 3, 3)
    assert (conv == conv[:, :1]).all()
    assert (conv.sum(3) == 2).all()
    density = Structure.load(tmp_path / 'density_0.50.json').density
    assert density['conv1.weight'] == (864, 432)


@pytest.mark.parametrize('density', [0.6, 0.45, 0.2])
@pytest.mark.parametrize('steps', [1, 2])
def test_a_pattern_of_a_network_that_is_sparse(tmp_path, density, steps):
    """Weights beyond the pattern are pruned at any density."""
    first = dict(density=density, ignore=['stem', 'depthwise'])
    train(sparse_config(tmp_path / 'a', hook=first))
    saved = tmp_path / 'a' / f'density_{density:.2f}.pth'
    before = zeros(load(saved)['state_dict'])
    hook = dict(pattern='2:4', steps=steps, interval=2)
    runner = train(
        sparse_config(tmp_path / 'b', hook=hook, load_from=str(saved))
    )
    after = zeros(runner.model.state_dict())
    for name in ('conv1.weight', 'conv2.weight', 'head.weight'):
        assert not (before[name] & ~after[name]).any()
        outputs, _, *kernel = after[name].shape
        inputs = after[name].reshape(outputs, -1, 4, *kernel)
        assert (inputs.sum(2) >= 2).all()
    # it is there now
    again = sparse_config(
        tmp_path / 'c',
        hook=hook,
        load_from=str(tmp_path / 'b' / 'density_0.50.pth'),
    )
    with pytest.raises(ValueError, match=r'pattern=\(2, 4\) is already met'):
        train(again)


def test_floors_and_sums_of_layers(tmp_path):
    hook = dict(min_density=0.25, layer_norm='sum')
    runner = train(sparse_config(tmp_path, hook=hook))
    masks = zeros(runner.model.state_dict())
    assert all(mask.mean() <= 0.75 for mask in masks.values())
    assert count(masks) == SIZE - round(0.3 * SIZE)


def test_weights_that_do_not_train_stay_whole(tmp_path):
    freeze = dict(type='FreezeAtOnce', part='conv1')
    runner = train(sparse_config(tmp_path, freeze))
    masks = zeros(runner.model.state_dict())
    assert not masks['conv1.weight'].any()
    assert count(masks) == SIZE - 864 - round(0.3 * (SIZE - 864))


@HOOKS.register_module(force=True)
class FreezeAtOnce(Hook):
    priority = 'VERY_HIGH'

    def __init__(self, part: str) -> None:
        self.part = part

    def before_train(self, runner: Runner) -> None:
        runner.model.get_submodule(self.part).requires_grad_(False)


# -- files ---------------------------------------------------------------


def test_what_is_saved(tmp_path):
    config = sparse_config(
        tmp_path, EMA, default_hooks=EVERY_EPOCH, optim_wrapper=ADAMW
    )
    runner = train(config)
    ends = '.json', '.pth', '_finetune.py'
    assert sorted(p.name for p in tmp_path.glob('density*')) == sorted(
        f'{STEM}{end}' for end in ends
    )
    full = make_config(tmp_path / 'other').model
    names = load_model(Config(dict(model=full))).state_dict().keys()
    saved = torch.load(tmp_path / f'{STEM}.pth', weights_only=True)
    assert saved['state_dict'].keys() == names
    assert count(zeros(saved['state_dict'])) == SIZE - round(0.3 * SIZE)
    structure = Structure.load(tmp_path / f'{STEM}.json')
    assert structure.axes == {}
    assert structure.density == {
        name: (mask.size, mask.size - int(mask.sum()))
        for name, mask in zeros(saved['state_dict']).items()
    }
    assert structure.cost_before == structure.cost_after
    last = load(tmp_path / 'epoch_6.pth')
    assert last['state_dict'].keys() == names
    assert last[KEY] == structure.to_dict()
    assert last[SPARSITY_KEY]['zeros_that_stay'] == {}
    assert zeros(last['state_dict'])['conv1.weight'].sum() == (
        zeros(runner.model.state_dict())['conv1.weight'].sum()
    )


def finetune(work_dir: Path, stem: str = STEM, **changes: Any) -> Config:
    config = Config.fromfile(work_dir / f'{stem}_finetune.py')
    config.merge_from_dict(
        dict(
            train_cfg=dict(max_epochs=3),
            default_hooks=EVERY_EPOCH,
            **changes,
        )
    )
    config.optim_wrapper = ADAMW
    config.experiment_name = f'{work_dir}{stem}'
    return config


def test_fine_tuning_keeps_zeros(tmp_path):
    train(sparse_config(tmp_path, EMA, hook=dict(after_target='stop')))
    saved = load(tmp_path / f'{STEM}.pth')['state_dict']
    config = finetune(tmp_path)
    kinds = [hook.type for hook in config.custom_hooks]
    assert kinds == ['EMAHook', 'mmgfp.StructureHook']
    runner = train(config)
    for model in (
        runner.model,
        *(average.module for average in averaged_models(runner)),
    ):
        tuned = model.state_dict()
        for name, mask in zeros(saved).items():
            assert (zeros(tuned)[name] == mask).all()
            assert not tuned[name].equal(saved[name])
    last = load(Path(config.work_dir, 'epoch_3.pth'))
    structure = Structure.load(tmp_path / f'{STEM}.json')
    assert last[KEY] == structure.to_dict()
    # the config of the full network, too
    full = Config(dict(model=dict(type='ToyClassifier')))
    path = Path(config.work_dir, 'epoch_3.pth')
    again, tuned = load_model(full, path), load_model(config, path)
    assert raw_outputs(again, (8, 8))[0].equal(raw_outputs(tuned, (8, 8))[0])


def test_weights_of_another_network_are_not_taken_for_pruned(tmp_path):
    train(sparse_config(tmp_path, hook=dict(after_target='stop')))
    saved = load(tmp_path / f'{STEM}.pth')
    saved['state_dict']['conv1.weight'].fill_(1)
    torch.save(saved, tmp_path / f'{STEM}.pth')
    with pytest.raises(ValueError, match='weight has 0 zeros') as error:
        train(finetune(tmp_path))
    assert '\n' not in str(error.value)


# -- channels first ------------------------------------------------------


@pytest.mark.parametrize('generated', [False, True])
def test_weights_after_channels(tmp_path, generated):
    channels = tmp_path / 'channels'
    train(make_config(channels))
    stem = channels / 'flops_0.50'
    slim = Structure.load(f'{stem}.json')
    more = {}
    if generated:
        more['model'] = Config.fromfile(f'{stem}_finetune.py').model
    config = sparse_config(
        tmp_path / 'weights',
        *[dict(type='mmgfp.StructureHook', structure=f'{stem}.json')]
        * generated,
        load_from=f'{stem}.pth',
        default_hooks=EVERY_EPOCH,
        **more,
    )
    runner = train(config)
    structure = Structure.load(tmp_path / 'weights' / f'{STEM}.json')
    assert structure.axes.keys() == slim.axes.keys()
    assert structure.cost_after == slim.cost_after
    weights = sum(known.weights for known in structure.density.values())
    left = sum(known.left for known in structure.density.values())
    assert weights == sum(
        runner.model.get_parameter(name).numel() for name in NAMES
    )
    assert weights < SIZE
    assert left == round(0.3 * weights)
    tuned = train(finetune(tmp_path / 'weights'))
    state = tuned.model.state_dict()
    assert count(zeros(state)) == weights - left
    path = Path(tuned.work_dir, 'epoch_3.pth')
    assert load(path)[KEY] == structure.to_dict()
    full = Config(dict(model=dict(type='ToyClassifier')))
    model = load_model(full, path)
    expected = build_pruned_model('ToyClassifier', path)
    expected.load_state_dict(state)
    outputs = raw_outputs(model, (8, 8))[0]
    assert outputs.equal(raw_outputs(expected, (8, 8))[0])


def test_cost_after_channels_and_weights(tmp_path):
    train(make_config(tmp_path / 'a'))
    slim = tmp_path / 'a' / 'flops_0.50.pth'
    config = sparse_config(tmp_path / 'b', load_from=str(slim))
    train(config)
    config.dump(tmp_path / 'config.py')
    checkpoint = tmp_path / 'b' / f'{STEM}.pth'
    done = run_tool(
        *('cost.py', tmp_path / 'config.py', '--checkpoint', checkpoint),
        *('--shape', 8, 8, '--json', tmp_path / 'cost.json'),
    )
    assert done.returncode == 0, done.stderr
    left = json.loads((tmp_path / 'cost.json').read_text())['nonzero']
    full = Structure.load(slim.with_suffix('.json')).cost_before
    model = ToyClassifier()
    calls = record_calls(model, lambda: raw_outputs(model, (8, 8)))
    assert full == count_cost(model, calls)['']
    line = (
        f'of the unpruned network: {left["flops"]:,} flops '
        f'({left["flops"] / full["flops"]:.1%}), {left["params"]:,} params '
        f'({left["params"] / full["params"]:.1%})\n'
    )
    assert line in done.stdout
    assert 'with the optimizer' not in done.stdout
    last = Path(config.work_dir) / 'epoch_3.pth'
    again = ('cost.py', tmp_path / 'config.py', '--checkpoint', last)
    done = run_tool(*again, '--shape', 16, 8)
    assert 'the checkpoint, with the optimizer, has' in done.stdout
    assert 'of the unpruned network' not in done.stdout


def test_channels_after_weights(tmp_path):
    """Zeros are not kept there, so that no density is recorded."""
    train(sparse_config(tmp_path / 'a', hook=dict(after_target='stop')))
    saved = str(tmp_path / 'a' / f'{STEM}.pth')
    config = make_config(tmp_path / 'b', load_from=saved, log_level='INFO')
    config.custom_hooks = config.custom_hooks[:1]
    train(config)
    (log,) = (tmp_path / 'b').glob('*/*.log')
    assert log.read_text().count('does not keep the pruned weights') == 1
    structure = Structure.load(tmp_path / 'b' / 'flops_0.50.json')
    assert structure.axes
    assert structure.density == {}
    train(finetune(tmp_path / 'b', 'flops_0.50'))


def test_sparser_from_sparse(tmp_path):
    train(sparse_config(tmp_path / 'a', hook=dict(after_target='stop')))
    first = zeros(load(tmp_path / 'a' / f'{STEM}.pth')['state_dict'])
    runner = train(
        sparse_config(
            tmp_path / 'b',
            dict(type='ZerosLog'),
            hook=dict(density=0.075, steps=2, interval=2),
            load_from=str(tmp_path / 'a' / f'{STEM}.pth'),
        )
    )
    masks = seen(runner)
    start = round(0.3 * SIZE) / SIZE
    half = SIZE - round(SIZE * start * (0.075 / start) ** 0.5)
    assert [count(masks[0]), count(masks[-1])] == [
        *(half, SIZE - round(0.075 * SIZE)),
    ]
    for name, mask in first.items():
        assert masks[0][name][mask].all()


# -- resuming ------------------------------------------------------------


def resumable(work_dir, *hooks: dict, **changes: Any) -> Config:
    settings = dict(
        model=dict(type='ToyClassifier', norm='BN', dropout=0.2),
        optim_wrapper=ADAMW,
        train_dataloader=loader(augment=True),
        hook=dict(steps=3, interval=5),
        **validated(augment=True),
    )
    settings.update(changes)
    return sparse_config(work_dir, EMA, *hooks, **settings)


def test_other_settings_are_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(resumable(tmp_path, dict(type='Stop', iteration=9)))
    for hook in (
        dict(steps=1),
        dict(steps=3, interval=5, density=0.9),
        dict(min_density=0.1),
        dict(layer_norm='sum'),
        dict(ignore=['stem']),
        dict(criterion=dict(type='KFAC')),
    ):
        config = resumable(tmp_path, hook=hook)
        config.resume = True
        with pytest.raises(ValueError, match='but the interrupted run had'):
            train(config)


INFINITE = dict(
    train_dataloader=dict(
        loader(augment=True),
        sampler=dict(type='InfiniteSampler', shuffle=True),
    ),
    train_cfg=dict(by_epoch=False, max_iters=24, val_interval=5),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)
    ),
)


def assert_same(one: dict, other: dict) -> None:
    assert one[KEY]['density'] == other[KEY]['density']
    for part in ('state_dict', 'ema_state_dict'):
        for name, tensor in one[part].items():
            assert tensor.equal(other[part][name]), name
    for key, state in one['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(value, other['optimizer']['state'][key][name])


@pytest.mark.parametrize(
    'changes, stop',
    [
        ({}, 9),
        (
            dict(
                hook=dict(criterion=KFAC, steps=3, interval=5, compensate=True)
            ),
            9,
        ),
        (INFINITE, 9),
        (INFINITE, 17),
    ],
    ids=['epochs', 'kfac', 'iters', 'when-done'],
)
def test_resumed_equals_uninterrupted(tmp_path, stop, changes):
    name = 'iter_24.pth' if changes is INFINITE else 'epoch_6.pth'
    train(resumable(tmp_path / 'whole', **changes))
    again = tmp_path / 'again'
    with pytest.raises(KeyboardInterrupt):
        train(resumable(again, dict(type='Stop', iteration=stop), **changes))
    torch.manual_seed(123)  # another process would start elsewhere
    config = resumable(again, **changes)
    config.resume = True
    train(config)
    assert_same(load(tmp_path / 'whole' / name), load(again / name))
    first, second = (
        load(tmp_path / folder / f'{STEM}.pth')['state_dict']
        for folder in ('whole', 'again')
    )
    for key, tensor in first.items():
        assert tensor.equal(second[key]), key


def test_interrupted_in_a_calibration_pass(tmp_path, monkeypatch):
    changes = dict(hook=dict(criterion=KFAC, steps=3, interval=5))
    train(resumable(tmp_path / 'whole', **changes))
    kind = CRITERIA.get('KFAC')
    real, calls = kind.end_batch, []

    def end_batch(self, *args):
        calls.append(args)
        if len(calls) == 6:  # the second batch of the third pass
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(kind, 'end_batch', end_batch)
    again = tmp_path / 'again'
    with pytest.raises(KeyboardInterrupt):
        train(resumable(again, **changes))
    assert not (again / f'{STEM}.pth').exists()
    torch.manual_seed(123)
    config = resumable(again, **changes)
    config.resume = True
    train(config)
    # the pass was repeated as a whole
    assert len(calls) == 8
    whole = load(tmp_path / 'whole' / 'epoch_6.pth')
    assert_same(whole, load(again / 'epoch_6.pth'))


@pytest.mark.parametrize('criterion', [KFAC, dict(KFAC, fisher='true')])
def test_curvature_beside_mixed_precision(tmp_path, criterion):
    """The pass itself is in full precision."""
    amp = dict(MOMENTUM, type='CpuAmpOptimWrapper')
    first, second = (
        train(
            sparse_config(
                tmp_path / name,
                hook=dict(criterion=criterion),
                optim_wrapper=wrapper,
            )
        ).model.state_dict()
        for name, wrapper in dict(amp=amp, full=MOMENTUM).items()
    )
    assert zeros(first).keys() == zeros(second).keys()
    for name, mask in zeros(first).items():
        assert (mask == zeros(second)[name]).all()


def test_killed_while_pruning_and_while_fine_tuning(tmp_path):
    def run(name: str, *hooks: dict, options=(), killed=False) -> None:
        config = tmp_path / f'{name}.py'
        sparse_config(
            tmp_path / name,
            *hooks,
            hook=dict(steps=2, interval=5),
            optim_wrapper=ADAMW,
            train_cfg=dict(by_epoch=True, max_epochs=3),
        ).dump(config)
        done = run_tool('train.py', config, *options)
        assert done.returncode == (-9 if killed else 0), done.stderr

    run('whole')
    run('killed', dict(type='Stop', iteration=6, kill=True), killed=True)
    run('killed', options=['--resume'])
    first, second = (tmp_path / n / 'epoch_3.pth' for n in ('whole', 'killed'))
    for name, tensor in load(first)['state_dict'].items():
        assert tensor.equal(load(second)['state_dict'][name]), name
    whole = train(finetune(tmp_path / 'whole'))
    config = finetune(tmp_path / 'killed')
    stopped = copy.deepcopy(config)
    stopped.custom_hooks += [dict(type='Stop', iteration=6)]
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    config.resume, config.load_from = True, None
    resumed = train(config)
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name


def test_a_zero_by_chance_is_trained_on_after_resuming(tmp_path):
    """Which zeros are not pruned is in the checkpoint."""
    settings = dict(hook=dict(after_target='train'), optim_wrapper=MOMENTUM)
    settings['train_cfg'] = dict(by_epoch=True, max_epochs=2)
    chance = dict(type='ZeroByChance', iteration=3)
    train(sparse_config(tmp_path / 'whole', chance, **settings))
    again = tmp_path / 'again'
    with pytest.raises(KeyboardInterrupt):
        stop = dict(type='Stop', iteration=4)
        train(sparse_config(again, chance, stop, **settings))
    saved = load(again / 'epoch_1.pth')
    (positions,) = saved[SPARSITY_KEY]['zeros_that_stay'].values()
    assert len(positions) == 1
    config = sparse_config(again, chance, **settings)
    config.resume = True
    train(config)
    first, second = (
        load(tmp_path / folder / 'epoch_2.pth')['state_dict']
        for folder in ('whole', 'again')
    )
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name
    assert first['conv1.weight'].flatten()[int(positions)] != 0


@HOOKS.register_module(force=True)
class ZeroByChance(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iteration:
            weight = runner.model.conv1.weight.data.view(-1)
            weight[int(weight.nonzero()[0])] = 0


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(version=2), 'version 2'),
        (dict(version=None), 'version None'),
        (dict(zeros_that_stay=3), 'zeros_that_stay'),
        (dict(zeros_that_stay={'x': 3}), 'zeros_that_stay'),
        (dict(done='1'), 'done'),
    ],
)
def test_states_of_other_kinds_are_refused(change, words):
    masks = WeightMasks(torch.nn.Linear(2, 2))
    state = {**sparse_state(masks, done=1), **change}
    with pytest.raises(ValueError) as error:
        read_sparse_state(state, dict(done=int))
    assert words in str(error.value)
    assert read_sparse_state(sparse_state(masks, done=1), dict(done=int))


# -- bad input -----------------------------------------------------------


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(density=1.5), ['density=1.5', 'between 0 and 1']),
        (dict(density=1), ['density=1', 'between 0 and 1']),
        (dict(density=None), ['density=None', 'between 0 and 1']),
        (dict(density=0.5, pattern='2:4'), ['contradicts pattern=2:4']),
        (dict(density=None, pattern='4:2'), ["pattern='4:2'", "'2:4'"]),
        (dict(density=None, pattern=0.5), ['pattern=0.5', "'2:4'"]),
        (dict(block=4), ['block=4', '(4, 1)']),
        (dict(block=(4, 0)), ['block=(4, 0)', '(4, 1)']),
        (dict(min_density=2), ['min_density=2', 'between 0 and 1']),
        (dict(min_density=False), ['min_density=False', 'between 0 and 1']),
        (dict(layer_norm='mean'), ["'mean'", "'none', 'sum'"]),
        (dict(steps=0), ['steps=0', 'whole number']),
        (dict(steps=3), ['steps=3 needs interval']),
        (dict(steps=3, interval=0), ['interval=0', 'whole number']),
        (
            dict(criterion=dict(type='Gradients')),
            ['steps=1 needs interval'],
        ),
        (
            dict(criterion=dict(type='Fisher')),
            ['scores channels, not single weights', 'Magnitude'],
        ),
        (dict(criterion=dict(type='Magnitud')), ["'Magnitude'"]),
        (dict(compensate=True), ["'Magnitude'", 'has no curvature', 'KFAC']),
        (dict(compensate=1), ['compensate=1', 'True or False']),
        (dict(after_target='go'), ["'go'", "'stop', 'train'"]),
        (dict(ignore='conv1'), ["ignore='conv1'"]),
        (dict(desity=0.5), ['desity=0.5', "did you mean 'density'?"]),
    ],
)
def test_impossible_arguments(arguments, words):
    settings = dict(density=0.3, criterion=dict(type='Magnitude'))
    with pytest.raises(ValueError) as error:
        SparsityHook(**{**settings, **arguments})
    text = str(error.value)
    assert '\n' not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    'hook, words',
    [
        (dict(ignore=['backbone.*']), ["ignore='backbone.*' matches no"]),
        (dict(ignore=['*']), ['no weights can be pruned']),
        (dict(min_density=0.5), ['density=0.3 cannot be reached', '0.5']),
        (
            dict(pattern='1:4', min_density=0.5),
            ['density=0.25 cannot be reached'],
        ),
        (dict(steps=9, interval=4), ['interval=4', '32 optimiser steps']),
    ],
)
def test_what_cannot_be(tmp_path, hook, words):
    with pytest.raises(ValueError) as error:
        train(sparse_config(tmp_path, hook=hook))
    text = str(error.value)
    assert '\n' not in text
    assert all(word in text for word in words), text
    assert not list(tmp_path.glob('density*'))


def test_both_hooks_at_once(tmp_path):
    config = sparse_config(tmp_path, *make_config(tmp_path).custom_hooks)
    with pytest.raises(ValueError, match='Prune channels first'):
        train(config)


def test_density_that_is_met(tmp_path):
    train(sparse_config(tmp_path / 'a', hook=dict(after_target='stop')))
    config = sparse_config(
        tmp_path / 'b', load_from=str(tmp_path / 'a' / f'{STEM}.pth')
    )
    with pytest.raises(ValueError, match='already met'):
        train(config)


def test_results_that_were_fine_tuned_are_not_replaced(tmp_path):
    train(sparse_config(tmp_path))
    (tmp_path / f'{STEM}_finetune').mkdir()
    with pytest.raises(ValueError, match=f'{STEM}_finetune'):
        train(sparse_config(tmp_path))


# -- tools ---------------------------------------------------------------


def test_cost_of_what_is_not_zero(tmp_path):
    config = sparse_config(tmp_path / 'a', hook=dict(after_target='stop'))
    train(config)
    config.dump(tmp_path / 'config.py')
    checkpoint = tmp_path / 'a' / f'{STEM}.pth'
    done = run_tool(
        *('cost.py', tmp_path / 'config.py', '--checkpoint', checkpoint),
        *('--shape', 8, 8, '--json', tmp_path / 'cost.json'),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'cost.json').read_text())
    state = load(checkpoint)['state_dict']
    masks = zeros(state)
    head = int((~masks.pop('head.weight')).sum())
    left = sum(int((~mask).sum()) for mask in masks.values())
    assert found['nonzero'] == dict(
        flops=64 * left + head,
        params=sum(int(t.count_nonzero()) for t in state.values()),
    )
    assert found['bytes'] == checkpoint.stat().st_size
    assert 0 < found['compressed_bytes'] < found['bytes']
    assert 'not zero:' in done.stdout
