"""When channels are cut out makes no difference, whatever trains."""

from __future__ import annotations

import warnings
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from toy import (
    ToyClassifier,
    load,
    loader,
    make_config,
    pruning_hook,
    raw_outputs,
    removals,
    train,
    validated,
)

from mmgfp import Structure
from mmgfp.engine.runner import averaged_models
from mmgfp.groups import UnitSpace
from mmgfp.slimming.masks import Masks
from mmgfp.tracing.finder import find_groups

MOMENTUM = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
BATCH_NORM = dict(type='ToyClassifier', norm='BN')
EVERY_EPOCH = dict(checkpoint=dict(type='CheckpointHook', interval=1))


@pytest.mark.parametrize('cut_to', [0, 4])
@pytest.mark.parametrize(
    'changes',
    [
        dict(optim_wrapper=MOMENTUM),
        dict(
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1)
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.2)],
        ),
        dict(optim_wrapper=MOMENTUM, model=BATCH_NORM, **validated()),
        dict(
            optim_wrapper=dict(MOMENTUM, accumulative_counts=2),
            train_dataloader=loader(size=64),
        ),
        dict(optim_wrapper=dict(MOMENTUM, type='CpuAmpOptimWrapper')),
    ],
    ids=['sgd', 'adamw-ema', 'bn-val', 'accumulation', 'amp'],
)
def test_same_trajectory(tmp_path, cut_to, changes):
    runs = {}
    for multiple in (1, cut_to):
        config = make_config(
            tmp_path / str(multiple),
            hook=dict(cut_to=multiple, after_target='train'),
            **{k: v for k, v in changes.items() if k != 'custom_hooks'},
        )
        config.custom_hooks += changes.get('custom_hooks', [])
        runner = Runner.from_cfg(config)
        runner.train()
        runs[multiple] = runner
    one, other = (removals(tmp_path / str(m)) for m in (1, cut_to))
    assert one == other
    assert len(one) >= 3
    saved = [
        load(tmp_path / str(m) / 'flops_0.50.pth')['state_dict']
        for m in (1, cut_to)
    ]
    last = [runs[m].model.state_dict() for m in (1, cut_to)]
    # half precision rounds other sums otherwise
    close = 1e-2 if 'type' in changes['optim_wrapper'] else 1e-4
    for ours, theirs in (saved, last):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(
                theirs[name], tensor, rtol=close, atol=close / 10, msg=name
            )


def test_when_channels_leave(tmp_path):
    """At multiples while training; all of them when something is saved."""
    sizes: list[tuple[int, int, bool]] = []

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any):
            pruner = pruning_hook(runner).pruner
            kept = pruner.net.structure().axes
            left = kept['conv1.weight', 0].keep if len(kept) else range(24)
            sizes.append(
                (
                    len(runner.model.conv1.weight),
                    len(left),
                    bool(pruner.net.masks.unmasked()),
                )
            )

    config = make_config(
        tmp_path,
        hook=dict(
            cut_to=4,
            channels_per_step=1,
            interval=1,
            scope='internal',
            save_at=[],
            target=dict(flops=0.5),
        ),
        model=dict(type='ToyClassifier', width=24),
        default_hooks=EVERY_EPOCH,
    )
    runner = Runner.from_cfg(config)
    runner.register_hook(Watch())
    runner.train()
    for there, kept, masked in sizes[:3]:  # nothing was saved yet
        assert there == -(-kept // 4) * 4
        assert masked == (there > kept)
    assert any(masked for *_, masked in sizes)
    there, kept, masked = sizes[-1]
    assert there == kept
    assert not masked
    first = load(tmp_path / 'epoch_1.pth')
    structure = first['mmgfp_structure']['tensors']['conv1.weight']['0']
    left = sum(end - begin for begin, end in structure['keep'])
    assert len(first['state_dict']['conv1.weight']) == left


INFINITE = dict(loader(augment=True), sampler=dict(type='InfiniteSampler'))
ITERATIONS = dict(
    train_dataloader=INFINITE,
    train_cfg=dict(by_epoch=False, max_iters=24),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100)
    ),
    hook=dict(cut_to=0, save_at=[], after_target='train'),
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
)


class Note(Hook):
    """What the network and its average say after each iteration."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.outputs: dict[int, list[list[torch.Tensor]]] = {}
        self.masked: dict[int, bool] = {}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any):
        models = [a.module for a in averaged_models(runner)] + [runner.model]
        with torch.random.fork_rng():
            outputs = [raw_outputs(model, (8, 8)) for model in models]
        self.outputs[runner.iter + 1] = outputs
        self.masked[runner.iter + 1] = bool(
            pruning_hook(runner).pruner.net.masks.unmasked()
        )


@pytest.mark.parametrize(
    'ema',
    [[], [dict(type='EMAHook', update_buffers=True)]],
    ids=['plain', 'ema'],
)
def test_checkpoints_saved_in_between_are_slim_and_go_on(tmp_path, ema):
    """The network that trains stays as wide as it was."""
    config = make_config(tmp_path, **ITERATIONS)
    config.custom_hooks += [*ema, dict(type='SaveOften', interval=3)]
    runner = Runner.from_cfg(config)
    note = Note()
    runner.register_hook(note)
    runner.train()
    in_between = [i for i, masked in note.masked.items() if masked]
    saved = [i for i in in_between if i % 3 == 0]
    assert len(saved) >= 2
    for i in range(3, 25, 3):
        checkpoint = load(tmp_path / f'often_{i}.pth')
        structure = Structure.from_dict(checkpoint['mmgfp_structure'])
        assert bool(structure.axes) == (i >= 3)
        parts = [checkpoint['state_dict']]
        if ema:  # the weights that train are in the place of the average
            averaged = checkpoint['ema_state_dict'].items()
            parts += [
                {
                    name.removeprefix('module.'): tensor
                    for name, tensor in averaged
                    if name.startswith('module.')
                }
            ]
        for weights, expected in zip(parts, note.outputs[i], strict=True):
            slim = ToyClassifier()
            structure.apply(slim)
            slim.load_state_dict(weights)
            for a, b in zip(raw_outputs(slim, (8, 8)), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        shapes = [t.shape for t in slim.parameters()]
        states = checkpoint['optimizer']['state'].values()
        assert [s['exp_avg'].shape for s in states] == shapes

    again = make_config(tmp_path / 'again', **ITERATIONS)
    again.custom_hooks += ema
    again.load_from, again.resume = f'{tmp_path}/often_{saved[-1]}.pth', True
    resumed = Runner.from_cfg(again)
    resumed.train()
    before = [r for r in removals(tmp_path) if r['iter'] > saved[-1]]
    rest = removals(tmp_path / 'again') if before else []
    assert rest == before
    expected = runner.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-3, atol=1e-4
        )


@pytest.mark.skipif(
    torch.__version__ < (2, 1),
    reason='this torch warns of every hook, marked or not',
)
def test_masked_weights_are_sent_to_other_processes_without_a_warning():
    model, images = ToyClassifier(), torch.rand(2, 3, 8, 8)
    groups = [
        group
        for group in find_groups(model.eval(), lambda m: m(images), images=2)
        if not group.frozen
    ]
    masks = Masks(model, UnitSpace(groups), Structure({}), cut_to=0)
    masks.mask([np.arange(1) for _ in groups])
    assert any(p._backward_hooks for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for parameter in model.parameters():
            ForkingPickler.dumps(parameter)


@pytest.mark.parametrize('how', ['module', 'function', 'runner'])
def test_compiled_models_are_refused(tmp_path, how):
    try:
        torch.compile(lambda x: x, backend='eager')
    except RuntimeError as error:
        pytest.skip(str(error))  # torch 2.0 with Python 3.11
    config = make_config(tmp_path)
    if how == 'runner':
        config.compile = dict(backend='eager')
    runner = Runner.from_cfg(config)
    if how == 'module':
        if not hasattr(runner.model, 'compile'):
            pytest.skip('this torch compiles functions only')
        runner.model.conv1.compile(backend='eager')
    elif how == 'function':
        runner.model.forward = torch.compile(
            runner.model.forward, backend='eager'
        )
    what = dict(module='conv1', function='forward', runner='train_step')
    words = rf'^{what[how]}[.\w]* is compiled.*Remove `compile`'
    with pytest.raises(ValueError, match=words):
        runner.train()


def test_channels_last(tmp_path):
    """Other strides, same channels; slicing keeps the layout."""
    train(tmp_path / 'plain')
    config = make_config(tmp_path / 'last')
    runner = Runner.from_cfg(config)
    runner.model.to(memory_format=torch.channels_last)
    runner.train()
    assert removals(tmp_path / 'last') == removals(tmp_path / 'plain')
    weight = runner.model.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(weight) < len(ToyClassifier().conv1.weight)
