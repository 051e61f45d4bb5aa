"""The hook in a real runner."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner import Runner
from processes import ROOT
from torch import nn
from toy import (
    ToyClassifier,
    ToyImages,
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
    structure_of,
    train,
    validated,
)

from mmgfp import FisherPruningHook, Structure
from mmgfp.engine import start
from mmgfp.registry import CRITERIA
from mmgfp.report.workdir import saved_ratios
from mmgfp.slimming.checkpoint import load_plain_checkpoint

pytestmark = pytest.mark.usefixtures('waits')
STEM, CONV1 = ('stem.weight', 0), ('conv1.weight', 0)


def flops(model: nn.Module) -> int:
    """Multiply-accumulates of the toy model on 8x8 images, by hand."""
    s, c = len(model.stem.weight), len(model.conv1.weight)
    return 64 * (3 * s * 9 + s * c * 9 + c * 9 + c * s) + s * 5


FULL = flops(ToyClassifier())
RUNNER = inspect.signature(Runner).parameters
ITER_BASED = dict(
    train_cfg=dict(by_epoch=False, max_iters=24),
    train_dataloader={
        **loader(),
        'sampler': dict(type='InfiniteSampler', shuffle=True),
    },
)


def assert_at_target(runner: Runner, target: float = 0.5) -> None:
    assert flops(runner.model) / FULL <= target
    ratio = pruning_hook(runner).pruner.net.ratio('flops')
    assert ratio == pytest.approx(flops(runner.model) / FULL)


def files(runner: Runner, stem: str) -> list[str]:
    return sorted(
        p.name[len(stem) :] for p in Path(runner.work_dir).glob(f'{stem}*')
    )


@pytest.mark.parametrize('loop', [{}, ITER_BASED], ids=['epochs', 'iters'])
def test_ends_at_the_target(tmp_path, loop):
    runner = train(tmp_path, **loop)
    assert_at_target(runner)
    # a unit of the target's metric is at most this; nothing more went
    assert flops(runner.model) / FULL > 0.5 - 0.12
    # the share of 0.6 of 24 iterations, in steps of 3, ends at the 12th
    assert removals(tmp_path)[-1]['iter'] == 12
    assert runner.iter == 12
    for stem in ('flops_0.75', 'flops_0.50'):
        assert files(runner, stem) == [
            '.json',
            '.png',
            '.pth',
            '_finetune.py',
        ]
    assert not list(tmp_path.glob('*.partial*'))


def test_saved_files_agree(tmp_path, monkeypatch, draw):
    monkeypatch.setattr('mmgfp.report.picture.draw_kept_channels', draw)
    runner = train(tmp_path)
    for share in (0.75, 0.5):
        stem = tmp_path / f'flops_{share:.2f}'
        structure = Structure.load(f'{stem}.json')
        assert structure.cost_before['flops'] == FULL
        assert structure.ratio('flops') <= share
        checkpoint = load_plain_checkpoint(f'{stem}.pth')
        assert checkpoint.keys() == {'meta', 'state_dict', 'mmgfp_structure'}
        assert checkpoint['mmgfp_structure'] == structure.to_dict()
        model = ToyClassifier()
        structure.apply(model)
        model.load_state_dict(checkpoint['state_dict'])
        assert flops(model) == structure.cost_after['flops']
        assert Path(f'{stem}.png').read_bytes()[:4] == b'\x89PNG'
    for name, tensor in runner.model.cpu().state_dict().items():
        assert tensor.equal(checkpoint['state_dict'][name]), name


def test_every_checkpoint_is_slim(tmp_path):
    train(tmp_path)
    sizes = []
    for path in sorted(tmp_path.glob('epoch_*.pth')):
        checkpoint = load(path)
        structure = Structure.from_dict(checkpoint['mmgfp_structure'])
        weights = checkpoint['state_dict']
        size = len(weights['stem.weight']), len(weights['conv1.weight'])
        for axis, n in zip((STEM, CONV1), size, strict=True):
            if axis in structure.axes:
                assert len(structure.axes[axis].keep) == n
        momenta = checkpoint['optimizer']['state']
        shapes = [s['momentum_buffer'].shape for s in momenta.values()]
        assert shapes == [
            t.shape for n, t in weights.items() if n != 'data_preprocessor'
        ]
        sizes.append(sum(size))
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 20


def test_pruning_goes_on_from_a_slim_checkpoint(tmp_path):
    """With the config of the full network; shares are those of the full."""
    train(tmp_path / 'first', hook=dict(target=dict(flops=0.75)))
    saved = str(tmp_path / 'first' / 'flops_0.75.pth')
    train(tmp_path / 'second', load_from=saved)
    first, second = (
        Structure.load(tmp_path / name)
        for name in ('first/flops_0.75.json', 'second/flops_0.50.json')
    )
    assert second.cost_before == first.cost_before
    assert second.ratio('flops') <= 0.5 < first.ratio('flops') <= 0.75
    for key, axis in first.axes.items():
        assert set(second.axes[key].keep) <= set(axis.keep), key


def test_the_users_model_stays_the_users_model(tmp_path):
    before = ToyClassifier()
    runner = train(tmp_path)
    after = runner.model
    assert after.state_dict().keys() == before.state_dict().keys()
    for (name, a), (_, b) in zip(
        before.named_modules(), after.named_modules(), strict=True
    ):
        assert type(a) is type(b), name
        assert set(vars(a)) == set(vars(b)), name
        assert 'forward' not in vars(b), name


@pytest.mark.parametrize(
    ('interval', 'reached', 'goes_on'),
    [(3, 12, False), (5, 10, True), (9, 9, True)],
)
def test_training_goes_on_to_the_end_of_the_epoch(
    tmp_path, interval, reached, goes_on
):
    """Also in the first iteration of one; each has four."""
    hook = dict(interval=interval, after_target='stop')
    if reached == interval:
        hook.update(channels_per_step=1000)
    runner = train(tmp_path, hook=hook, log_level='INFO')
    assert runner.iter == 12
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert 'target reached' in text
    assert 'nothing is trained' not in text
    assert ('training ends after this epoch' in text) == goes_on


@pytest.mark.parametrize('after_target', ['stop', 'train'])
def test_after_the_target(tmp_path, after_target):
    runner = train(tmp_path, hook=dict(after_target=after_target))
    assert_at_target(runner)
    assert runner.iter == (12 if after_target == 'stop' else 24)
    # nothing of the hook is left to slow training down
    for module in runner.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not module._backward_hooks
    optimizer = runner.optim_wrapper.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_nothing_is_pruned_after_the_target(tmp_path):
    runner = train(tmp_path, hook=dict(after_target='train'))
    assert removals(tmp_path)[-1]['left'] == structure_of(runner)
    assert removals(tmp_path)[-1]['iter'] == 12


@MODELS.register_module(force=True)
class Keeping(ExponentialMovingAverage):
    """Keeps the tensors that it averages, as the one of MMYOLO does."""

    def __init__(self, model: nn.Module, *args, **kwargs) -> None:
        super().__init__(model, *args, **kwargs)
        self.src_parameters = (
            model.state_dict()
            if self.update_buffers
            else dict(model.named_parameters())
        )

    def update_parameters(self, model: nn.Module) -> None:
        kept = SimpleNamespace(
            state_dict=lambda: self.src_parameters,
            named_parameters=self.src_parameters.items,
            buffers=model.buffers,
        )
        super().update_parameters(kept)


@pytest.mark.parametrize('kind', ['ExponentialMovingAverage', 'Keeping'])
@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights(tmp_path, update_buffers, kind):
    """The average is that of a copy that was averaged by hand."""
    expected = {}

    shapes = {n: t.shape for n, t in ToyClassifier().state_dict().items()}

    class Oracle(Hook):
        """Averages full-size tensors in which removed channels are NaN."""

        priority = 'LOW'

        def after_train_iter(self, runner, *args, **kwargs):
            kept = pruning_hook(runner).pruner.net.structure().keep
            for name, tensor in runner.model.state_dict().items():
                tensor = tensor.cpu()
                full = torch.full(shapes[name], float('nan'))
                positions = [
                    torch.as_tensor(kept.get((name, axis), range(n)))
                    for axis, n in enumerate(full.shape)
                ]
                full[torch.meshgrid(*positions, indexing='ij')] = tensor
                old = expected.get(name, full)
                expected[name] = 0.8 * old + 0.2 * full

    ema = dict(
        type='EMAHook',
        ema_type=kind,
        momentum=0.2,
        update_buffers=update_buffers,
    )
    # the oracle cuts at once, on a GPU too
    config = make_config(tmp_path, hook=dict(cut_to=1))
    config.custom_hooks = [ema, *config.custom_hooks]
    runner = Runner.from_cfg(config)
    runner.register_hook(Oracle())
    runner.train()
    assert_at_target(runner)
    (hook,) = [h for h in runner.hooks if type(h) is EMAHook]
    assert flops(hook.ema_model.module) == flops(runner.model)
    for name, tensor in hook.ema_model.module.cpu().state_dict().items():
        alive = expected[name][~expected[name].isnan()].reshape(tensor.shape)
        torch.testing.assert_close(tensor, alive)
        saved = load(tmp_path / 'epoch_3.pth')
        assert saved['state_dict'][name].equal(tensor)


def test_averaged_weights_are_what_is_saved(tmp_path):
    config = make_config(
        tmp_path, hook=dict(after_target='train'), **validated()
    )
    config.custom_hooks += [dict(type='EMAHook', update_buffers=True)]
    runner = Runner.from_cfg(config)
    runner.train()
    saved = load_plain_checkpoint(tmp_path / 'flops_0.50.pth')
    assert saved.keys() == {'meta', 'state_dict', 'mmgfp_structure'}
    assert saved['meta']['dataset_meta'] == ToyImages.METAINFO
    model = ToyClassifier()
    Structure.load(tmp_path / 'flops_0.50.json').apply(model)
    model.load_state_dict(saved['state_dict'])
    assert any(
        not tensor.equal(model.state_dict()[name])
        for name, tensor in runner.model.cpu().state_dict().items()
    )


def test_gradient_accumulation(tmp_path):
    runner = train(
        tmp_path,
        hook=dict(interval=3),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.05), accumulative_counts=2
        ),
    )
    assert_at_target(runner)
    # the interval counts steps of the optimiser, not batches
    assert [r['iter'] % 6 for r in removals(tmp_path)] == [0] * len(
        removals(tmp_path)
    )


@pytest.mark.parametrize('cut_to', [1, 0])
def test_epochs_that_end_within_an_optimiser_step(tmp_path, cut_to):
    """What is masked is cut out there, before the network is saved."""
    runner = train(
        tmp_path,
        model=dict(type='ToyClassifier', norm='BN'),
        hook=dict(interval=1, cut_to=cut_to),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.05), accumulative_counts=3
        ),
    )
    assert_at_target(runner)
    check_statistics(runner)


def test_epochs_that_end_with_a_step_that_the_scaler_skips(tmp_path):
    runner = train(
        tmp_path,
        model=dict(type='ToyClassifier', norm='BN'),
        hook=dict(interval=2, cut_to=0),
        # in the last batch of every epoch
        train_dataloader=loader(shuffle=False, factors={31: 'inf'}),
        optim_wrapper=dict(
            type='CpuAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.05)
        ),
    )
    assert_at_target(runner)
    check_statistics(runner)


def check_statistics(runner: Runner) -> None:
    norms = [runner.model.norm0, runner.model.norm1]
    for norm in norms:
        assert len(norm.running_mean) == len(norm.running_var)
        assert len(norm.running_mean) == norm.num_features
        assert norm.running_mean.isfinite().all()
        assert norm.running_var.isfinite().all()


def test_mixed_precision(tmp_path):
    wrapper = dict(
        type='CpuAmpOptimWrapper',
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
        clip_grad=dict(max_norm=10.0),
    )
    runner = train(tmp_path, optim_wrapper=wrapper)
    assert_at_target(runner)
    other = dict(wrapper, init_scale=64.0)
    runner = train(tmp_path / 'other', optim_wrapper=other)
    # powers of two leave the mantissas alone: the very same run
    assert removals(tmp_path) == removals(tmp_path / 'other')


def freezing(tmp_path, part, *when, **kwargs) -> tuple[Runner, str]:
    """Train with a part that is frozen meanwhile; its log."""
    config = make_config(
        tmp_path, model=dict(type='Necked'), log_level='INFO', **kwargs
    )
    config.custom_hooks += [dict(type='Freeze', part=part, begin=when[0])]
    if len(when) > 1:
        config.custom_hooks[-1].end = when[1]
    runner = Runner.from_cfg(config)
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    return runner, log.read_text()


@pytest.mark.parametrize('pace', ['auto', 2])
def test_what_a_hook_freezes_is_left_alone(tmp_path, pace):
    """Nor has the rest to pay for what is frozen."""
    hook = dict(channels_per_step=pace, target=dict(flops=0.3))
    runner, log = freezing(tmp_path, 'backbone', 7, hook=hook)
    assert [r['iter'] for r in removals(tmp_path)] == [3, 6]
    frozen = removals(tmp_path)[-1]['left']
    assert frozen == structure_of(runner)
    assert len(runner.model.neck.weight) > 4
    lines = [line for line in log.splitlines() if 'no scores of' in line]
    (line,) = lines
    names = 'backbone.0.0, backbone.2.0'
    assert f'iteration 9: no scores of channel groups {names}: ' in line
    assert 'pruning waits for them' in line
    assert 'the target of 0.3 was not reached' in log
    assert f'step left out channel groups {names}, which had' in log
    assert runner.iter == 24


def test_what_is_frozen_meanwhile_is_pruned_later(tmp_path):
    runner, log = freezing(tmp_path, 'backbone', 4, 9)
    assert [r['iter'] for r in removals(tmp_path)] == [3, 12]
    assert pruning_hook(runner).pruner.net.ratio('flops') <= 0.5
    assert log.count('no scores of') == 1
    assert 'iteration 12: all channel groups have scores again' in log


def test_the_rest_goes_on_if_it_can_reach_the_target(tmp_path):
    hook = dict(target=dict(params=0.7))
    runner, log = freezing(tmp_path, 'backbone.0', 4, hook=hook)
    (first, *_) = removals(tmp_path)
    assert first['iter'] == 3
    kept = first['left'].get('backbone.0.0.weight')
    assert structure_of(runner).get('backbone.0.0.weight') == kept
    assert pruning_hook(runner).pruner.net.ratio('params') <= 0.7
    assert 'no scores of channel groups backbone.0.0: ' in log
    assert 'pruning waits for them' not in log


def test_nothing_is_pruned_where_no_loss_has_a_gradient(tmp_path):
    runner = train(
        tmp_path,
        train_dataloader=loader(factors=dict.fromkeys(range(32), 0.0)),
        log_level='INFO',
    )
    assert not list(tmp_path.glob('removals_*'))
    assert runner.iter == 24
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert text.count('no scores of channel groups stem, conv1: ') == 1
    assert 'step left out channel groups stem, conv1, which had' in text


def test_one_choice_per_step(tmp_path):
    runner = train(
        tmp_path,
        hook=dict(channels_per_step=1, interval=1, target=dict(flops=0.7)),
    )
    assert_at_target(runner, 0.7)
    kept = [
        sum(
            e - b
            for axis, name in ((0, 'stem.weight'), (0, 'conv1.weight'))
            if str(axis) in r['left'].get(name, {})
            for b, e in r['left'][name][str(axis)]['keep']
        )
        for r in removals(tmp_path)
    ]
    iterations = [r['iter'] for r in removals(tmp_path)]
    assert iterations == list(range(1, len(kept) + 1))


def test_scope_internal(tmp_path):
    runner = train(
        tmp_path, hook=dict(scope='internal', target=dict(flops=0.6))
    )
    assert_at_target(runner, 0.6)
    assert len(runner.model.stem.weight) == 8
    assert len(runner.model.conv1.weight) < 12


def test_another_criterion(tmp_path):
    """What CONTRIBUTING.md shows keeps the greatest filters."""
    page = (ROOT / 'CONTRIBUTING.md').read_text()
    page = page.split('## A criterion of your own')[1]
    code = page.split('```python\n')[1].split('```')[0]
    if 'RootMagnitude' not in CRITERIA:
        exec(compile(code, 'CONTRIBUTING.md', 'exec'), {'__name__': 'here'})
    config = make_config(
        tmp_path,
        hook=dict(
            type='mmgfp.PruningHook',
            criterion=dict(type='RootMagnitude'),
            scope='internal',
            normalize_by='none',
            target=dict(flops=0.6),
        ),
        model=dict(type='ToyClassifier', norm='BN'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    runner = Runner.from_cfg(config)
    filters = runner.model.conv1.weight.detach().clone()
    runner.train()
    left = runner.model.conv1.weight
    assert 1 < len(left) < 12
    sizes = filters.abs().sqrt().sum((1, 2, 3))
    greatest = sizes.topk(len(left)).indices.sort().values
    assert torch.equal(left, filters[greatest])


def test_ignore(tmp_path):
    runner = train(
        tmp_path, hook=dict(ignore=['conv[1]'], target=dict(flops=0.6))
    )
    assert_at_target(runner, 0.6)
    assert len(runner.model.stem.weight) < 8
    assert len(runner.model.conv1.weight) == 12


def test_floors(tmp_path):
    runner = train(
        tmp_path, hook=dict(min_ratio=0.5, round_to=2, target=dict(flops=0.4))
    )
    assert_at_target(runner, 0.4)
    assert len(runner.model.stem.weight) in (4, 6)
    assert len(runner.model.conv1.weight) in (6, 8, 10)


def test_input_shape(tmp_path):
    runner = train(tmp_path, hook=dict(input_shape=[16, 8]))
    structure = Structure.load(tmp_path / 'flops_0.50.json')
    assert structure.input_shape == (16, 8)
    full, slim = ToyClassifier(), runner.model
    assert structure.cost_before['flops'] == 2 * flops(full) - 8 * 5
    heads = len(slim.head.weight.flatten())
    assert structure.cost_after['flops'] == 2 * flops(slim) - heads


def test_metrics_and_saved_shares(tmp_path):
    runner = train(
        tmp_path, hook=dict(target=dict(params=0.6), save_at=[0.9, 0.7])
    )
    full = sum(p.numel() for p in ToyClassifier().parameters())
    slim = sum(p.numel() for p in runner.model.parameters())
    assert slim / full <= 0.6
    saved = sorted(p.name for p in tmp_path.glob('params_*.pth'))
    assert saved == ['params_0.60.pth', 'params_0.70.pth', 'params_0.90.pth']


def test_validation_and_batch_norm(tmp_path):
    runner = train(
        tmp_path, model=dict(type='ToyClassifier', norm='BN'), **validated()
    )
    assert_at_target(runner)
    assert len(runner.model.norm0.running_mean) == len(runner.model.norm0.bias)
    assert 'toy/accuracy' in runner.message_hub.log_scalars or (
        'val/toy/accuracy' in runner.message_hub.log_scalars
    )


def test_logs(tmp_path):
    config = make_config(tmp_path, log_level='INFO')
    runner = Runner.from_cfg(config)
    runner.train()
    hub = runner.message_hub
    for metric in ('flops', 'params', 'acts'):
        history = hub.get_scalar(f'train/{metric}')
        assert history.current() == pytest.approx(
            pruning_hook(runner).pruner.net.ratio(metric)
        )
    gone = 20 - len(runner.model.stem.weight) - len(runner.model.conv1.weight)
    assert hub.get_scalar('train/channels_pruned').current() == gone
    assert hub.get_info('last_pruned').split()[0] in ('stem', 'conv1')
    scalars = [
        json.loads(line)
        for path in tmp_path.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    assert scalars[-1]['flops'] <= 0.5
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert f'flops {FULL:,}' in text
    assert 'channels pruned, last ' in text
    assert 'target flops 0.5 in about 0:00:0' in text
    assert text.count('target flops 0.5 reached') == 1
    assert 'target reached: flops at' in text


def test_says_when_training_was_too_short(tmp_path):
    config = make_config(tmp_path, hook=dict(channels_per_step=1, interval=10))
    runner = Runner.from_cfg(config)
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    assert 'the target of 0.5 was not reached' in log.read_text()
    assert runner.iter == 24
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


def test_scores_come_from_the_runs_own_batches(tmp_path):
    """The first choice equals the one from scores of every image alone."""
    config = make_config(
        tmp_path,
        hook=dict(channels_per_step=1, interval=2, normalize_by='none'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        train_dataloader=loader(shuffle=False, size=13),
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    model, data = runner.model, ToyImages(13)
    model.init_weights()
    scores = {
        'stem': torch.zeros(4).double(),
        'conv1': torch.zeros(6).double(),
    }
    device = next(model.parameters()).device
    model.cpu().double()
    for i in range(13):
        masks = {g: torch.ones(len(s)).double() for g, s in scores.items()}
        for mask in masks.values():
            mask.requires_grad_()

        def hook(module, args, mask=masks['stem']):
            m = mask.repeat_interleave(2)  # a norm group is two channels
            return (args[0] * (m[:, None, None] if args[0].dim() > 2 else m),)

        def inner(module, args, mask=masks['conv1']):
            return (args[0] * mask.repeat_interleave(2)[:, None, None],)

        handles = [
            model.conv1.register_forward_pre_hook(hook),
            model.head.register_forward_pre_hook(hook),
            model.depthwise.register_forward_pre_hook(inner),
            model.conv2.register_forward_pre_hook(inner),
        ]
        loss = model(
            data.images[i : i + 1].double(),
            data.labels[i : i + 1],
            torch.ones(1).double(),
            mode='loss',
        )['loss']
        for group, g in zip(
            scores,
            torch.autograd.grad(loss, list(masks.values())),
            strict=True,
        ):
            scores[group] += g.square()
        for handle in handles:
            handle.remove()
    model.to(device, torch.float)
    runner.train()
    flat = torch.cat(list(scores.values()))
    unit = int(flat.argmin())
    name, unit = ('stem', unit) if unit < 4 else ('conv1', unit - 4)
    size = 2 * len(scores[name])
    (removal,) = removals(tmp_path)
    expected = [
        [b, e] for b, e in ((0, 2 * unit), (2 * unit + 2, size)) if e > b
    ]
    assert removal['left'][f'{name}.weight']['0']['keep'] == expected


def test_log_of_start_and_end(tmp_path):
    """What is odd about the start, and what to do after the end."""

    def log(work_dir: Path) -> str:
        return ''.join(f.read_text() for f in work_dir.rglob('*.log'))

    train(tmp_path / 'first', log_level='INFO')
    text = log(tmp_path / 'first')
    assert 'load_from is not set' in text
    config = tmp_path / 'first' / 'flops_0.50_finetune.py'
    assert f'to recover accuracy, train with {config}' in text
    assert config.exists()
    saved = str(tmp_path / 'first' / 'flops_0.50.pth')
    hook = dict(target=dict(flops=0.3))
    train(tmp_path / 'second', load_from=saved, hook=hook)
    assert 'load_from is not set' not in log(tmp_path / 'second')


def test_the_log_names_what_was_written(tmp_path):
    """A runner made of objects has no model in its config."""
    train(tmp_path)
    config = make_config(tmp_path, log_level='INFO')
    model = ToyClassifier()
    model.init_weights()
    settings = config.to_dict()
    settings.update(model=model)
    (tmp_path / 'flops_0.75_finetune.py').write_text('of an earlier run')
    Runner(**{k: v for k, v in settings.items() if k in RUNNER}).train()
    assert not list(tmp_path.glob('*_finetune.py'))
    log = max(tmp_path.glob('*/*.log'), key=lambda p: p.stat().st_mtime)
    text = log.read_text()
    assert 'flops_0.50.pth, at 0.4' in text
    assert 'with flops_0.50.json, flops_0.50.png\n' in text
    assert '_finetune.py' not in text.split('Hooks will be executed')[-1]
    assert 'to recover accuracy' not in text


@pytest.mark.parametrize(
    'save_at, names',
    [
        ([0.499, 0.5, 0.75], ['flops_0.499', 'flops_0.500', 'flops_0.75']),
        ([0.9, 0.5004], ['flops_0.48', 'flops_0.50', 'flops_0.90']),
        ([0.12345, 0.1234], ['flops_0.1234', 'flops_0.1235']),
        ([0.5, 0.004], ['flops_0.004', 'flops_0.50']),
    ],
)
def test_every_share_has_a_name_of_its_own(save_at, names):
    target = min([0.48] if 0.9 in save_at else save_at)
    hook = FisherPruningHook(target=dict(flops=target), save_at=save_at)
    assert sorted(hook._stems.values()) == names


def test_shares_close_together_are_saved_apart(tmp_path):
    hook = dict(
        target=dict(flops=0.5), save_at=[0.504, 0.75], channels_per_step=1
    )
    train(tmp_path, hook=dict(hook, interval=1))
    found = [ratio.stem for ratio in saved_ratios(tmp_path)]
    assert found == ['flops_0.75', 'flops_0.504', 'flops_0.500']
    for ratio in saved_ratios(tmp_path):
        assert ratio.checkpoint.is_file()
        assert ratio.finetune_config.is_file()
        share = float(ratio.stem.removeprefix('flops_'))
        assert ratio.structure.ratio('flops') <= share


def test_finding_groups_for_long_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(start, 'PATIENCE', -1)
    train(tmp_path, log_level='INFO')
    (log,) = Path(tmp_path).glob('*/*.log')
    lines = log.read_text().splitlines()
    stages = [line for line in lines if line.endswith('s so far')]
    assert len(stages) == 3
    assert 'tracing channels, ' in stages[0]
    assert re.search(r'proving \d+ channel groups, \d+ s', stages[2])


def test_config_is_dumped_for_finetuning(tmp_path):
    runner = train(tmp_path, hook=dict(finetune=dict(resume=True, answer=42)))
    config = Config.fromfile(tmp_path / 'flops_0.50_finetune.py')
    assert config.model.type == 'mmgfp.PrunedModel'
    assert config.model.architecture == 'ToyClassifier'
    assert config.load_from == str(tmp_path / 'flops_0.50.pth')
    assert config.answer == 42
    assert [h.type for h in config.custom_hooks] == [
        *('StructureLog', 'mmgfp.StructureHook')
    ]
    assert config.train_cfg == runner.cfg.train_cfg


def test_only_commands_print():
    for path in (ROOT / 'mmgfp').rglob('*.py'):
        if path.parent.name == 'commands':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert getattr(node.func, 'id', '') != 'print', path
