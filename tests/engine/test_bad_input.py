"""Every mistake ends in one clear message and leaves nothing half-done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from processes import run_tool
from pruning import sums
from toy import (
    Stop,
    ToyClassifier,
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
    train,
    validated,
    write_config,
)

from mmgfp import FisherPruningHook
from mmgfp.engine.steps import MAX_SKIPPED
from mmgfp.slimming.element_masks import Density
from mmgfp.slimming.structure import Structure

HALF = dict(flops=0.5)


def message(config=None, **hook) -> str:
    with pytest.raises(ValueError) as error:
        HOOKS.build(
            dict(dict(type='mmgfp.FisherPruningHook', target=HALF), **hook)
        )
    text = str(error.value)
    assert '\n' not in text
    return text


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(intervall=5), ['intervall=5', "did you mean 'interval'?"]),
        (
            dict(xyz=1),
            ['xyz=1', 'Expected some of target, criterion, interval'],
        ),
        (dict(target=None), ['target=None', 'dict(flops=0.5)']),
        (dict(target=0.5), ['target=0.5', 'dict(flops=0.5)']),
        (dict(target=dict(flops=0.5, acts=0.5)), ['one metric']),
        (dict(target=dict(macs=0.5)), ["'macs'", "'flops'"]),
        (dict(target=dict(flops=50)), ["target['flops']=50", '0 and 1']),
        (dict(target=dict(flops=1.0)), ['1.0', 'between 0 and 1']),
        (dict(target=dict(flops='0.5')), ["'0.5' (str)", '0 and 1']),
        (dict(target=dict(flops=float('nan'))), ['nan', '0 and 1']),
        (dict(interval=0), ['interval=0', 'whole number from 1']),
        (dict(interval=2.5), ['interval=2.5 (float)', 'whole number']),
        (dict(interval=True), ['interval=True (bool)']),
        (
            dict(normalize_by='flop'),
            ["'flop'", "'acts', 'flops', 'latency', 'none'"],
        ),
        (dict(channels_per_step=0), ['channels_per_step=0', "or 'auto'"]),
        (dict(channels_per_step='all'), ["'all'", "or 'auto'"]),
        (
            dict(channels_per_step='auto', prune_share=1.5),
            ['prune_share=1.5', 'between 0 and 1'],
        ),
        (
            dict(channels_per_step=2, prune_share=0.5),
            ['prune_share=0.5 contradicts channels_per_step=2', "'auto'"],
        ),
        (dict(scope='inner'), ["scope='inner'", "'all', 'internal'"]),
        (dict(after_target='go'), ["'go'", "'stop', 'train'"]),
        (dict(save_at=0.75), ['save_at=0.75', 'a list']),
        (dict(save_at=[75]), ['save_at=75', 'between 0 and 1']),
        (dict(save_at=[0.75, 0.25]), ['contradicts the target of 0.5']),
        (dict(min_channels=0), ['min_channels=0', 'from 1']),
        (dict(min_ratio=1.0), ['min_ratio=1.0', 'between 0 and 1']),
        (dict(min_ratio=-0.1), ['min_ratio=-0.1']),
        (dict(round_to=0), ['round_to=0', 'from 1']),
        (dict(ignore='stem'), ["ignore='stem'", 'a list']),
        (dict(ignore=[1]), ['ignore=[1]', 'a list']),
        (dict(input_shape=640), ['input_shape=640', '(height, width)']),
        (dict(input_shape=(0, 8)), ['(0, 8)', '(height, width)']),
        (dict(finetune='lr=1'), ["finetune='lr=1'"]),
    ],
    ids=str,
)
def test_hook_arguments(arguments, words):
    text = message(**arguments)
    for word in words:
        assert word in text


def test_arguments_that_are_fine():
    hook = FisherPruningHook(
        target=dict(acts=0.4),
        channels_per_step='auto',
        prune_share=1.0,
        save_at=(),
        min_ratio=0,
        input_shape=[64, 32],
    )
    assert hook.save_at == [0.4]
    assert hook.input_shape == (64, 32)
    assert FisherPruningHook(target=HALF).save_at == [0.75, 0.5]
    assert FisherPruningHook(target=dict(acts=0.2)).save_at == [
        *(0.75, 0.5, 0.25, 0.2)
    ]


# -- what only the model and the data can tell -------------------------------


def refused(tmp_path, error=ValueError, **kwargs) -> str:
    runner = Runner.from_cfg(make_config(tmp_path, **kwargs))
    with pytest.raises(error) as info:
        runner.train()
    return str(info.value)


def test_results_in_use_are_not_replaced(tmp_path):
    train(tmp_path)
    train(tmp_path)  # nothing was fine-tuned: they may go
    before = (tmp_path / 'flops_0.50.json').read_text()
    (tmp_path / 'flops_0.50_finetune').mkdir()
    text = refused(tmp_path)
    assert 'flops_0.50.json of an earlier run' in text
    assert 'flops_0.50_finetune' in text
    assert '--work-dir' in text
    assert (tmp_path / 'flops_0.50.json').read_text() == before


@MODELS.register_module()
class ToyPair(ToyClassifier):
    """A classifier that teaches a copy of itself."""

    def __init__(self, other: int = 0) -> None:
        super().__init__()
        self.student = torch.nn.Linear(3, 4)
        self.teacher = torch.nn.Linear(3, 4 + other)


def test_student_and_teacher_of_one_kind(tmp_path):
    text = refused(tmp_path / 'a', model=dict(type='ToyPair'))
    assert 'ToyPair holds a network twice, as student and teacher' in text
    assert 'expected a single network' in text
    assert "prefix='student'" in text
    assert not [*(tmp_path / 'a').glob('*.pth')]
    train(tmp_path / 'b', model=dict(type='ToyPair', other=1))


def test_target_already_met(tmp_path):
    train(tmp_path / 'first')
    saved = str(tmp_path / 'first' / 'flops_0.50.pth')
    text = refused(tmp_path / 'second', load_from=saved)
    assert 'already met: flops is at 0.4' in text
    assert "target={'flops': 0.5}" in text
    assert 'fine-tune' in text


def test_target_below_the_floors(tmp_path):
    text = refused(tmp_path, hook=dict(min_channels=8))
    # stem keeps 8 of 8 and conv1 8 of 12
    full, least = ((3 * 8 * 9 + 8 * c * 9 + c * 9 + c * 8) for c in (12, 8))
    share = (64 * least + 40) / (64 * full + 40)
    assert "target={'flops': 0.5} cannot be reached" in text
    assert f'at least {share:.3f} of flops remains' in text
    assert 'min_channels=8' in text


@pytest.mark.parametrize(
    'kind, words',
    [
        ('LBFGS', 'LBFGS needs a closure in every step'),
        ('Adafactor', 'Adafactor keeps "row_var" of shape'),
    ],
)
def test_optimizer_that_cannot_follow(tmp_path, kind, words):
    if not hasattr(torch.optim, kind):
        pytest.skip(f'this torch has no {kind}')
    runner = Runner.from_cfg(make_config(tmp_path))
    make = getattr(torch.optim, kind)
    runner.optim_wrapper = OptimWrapper(make(runner.model.parameters()))
    with pytest.raises(ValueError, match=f'{words}.*SGD, Adam or AdamW'):
        runner.train()
    assert runner.iter == 0
    assert not list(tmp_path.glob('*.pth'))


def test_optimizer_that_cannot_be_tried(tmp_path):
    """It is told of, and the run goes on."""

    class Moody(torch.optim.SGD):
        def step(self, closure=None):
            if len(self.param_groups[0]['params']) == 1:
                raise KeyError('the others')
            return super().step(closure)

    runner = Runner.from_cfg(make_config(tmp_path))
    runner.optim_wrapper = OptimWrapper(Moody(runner.model.parameters(), 0.1))
    runner.train()
    assert pruning_hook(runner).pruner.net.ratio('flops') <= 0.5
    (log,) = tmp_path.glob('*/*.log')
    assert 'Moody cannot be checked: KeyError' in log.read_text()


@pytest.mark.parametrize(
    'accumulated, steps', [(1, 24), (4, 6), (5, 5), (30, 1)]
)
def test_interval_longer_than_training(tmp_path, accumulated, steps):
    """It counts optimiser steps; the last one may have fewer batches."""
    optimizer = dict(type='SGD', lr=0.05)
    wrapper = dict(optimizer=optimizer, accumulative_counts=accumulated)
    hook = dict(interval=steps + 1)
    text = refused(tmp_path, hook=hook, optim_wrapper=wrapper)
    assert f'interval={steps + 1}: the training has only {steps} opt' in text
    assert f'max_iters=24, accumulative_counts={accumulated}' in text
    runner = train(
        tmp_path,
        hook=dict(interval=steps, target=dict(flops=0.9)),
        optim_wrapper=wrapper,
    )
    assert removals(tmp_path)
    assert runner.iter == 24 or steps == 24


def test_pattern_that_matches_nothing(tmp_path):
    text = refused(tmp_path, hook=dict(ignore=['backbone.*']))
    assert "ignore='backbone.*' matches no layer" in text


def test_nothing_can_be_pruned(tmp_path):
    text = refused(tmp_path, model=dict(type='Unprunable'))
    assert 'no channel group can be pruned: ' in text


def test_forward_fails_on_the_demo_input(tmp_path):
    text = refused(
        tmp_path,
        error=RuntimeError,
        model=dict(type='FixedSize'),
        hook=dict(input_shape=(16, 16)),
    )
    assert 'FixedSize does not run on the demo input' in text
    assert 'input_shape=(H, W)' in text


# -- structures and checkpoints ----------------------------------------------


@pytest.fixture(scope='module')
def pruned(tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('pruned')
    train(work_dir)
    return work_dir / 'flops_0.50.pth'


def load_changed(tmp_path, pruned, change, **kwargs) -> str:
    checkpoint = load(pruned)
    change(checkpoint)
    path = tmp_path / 'changed.pth'
    torch.save(checkpoint, path)
    before = ToyClassifier().state_dict()
    config = make_config(
        tmp_path, load_from=str(path), **validated(), **kwargs
    )
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError) as error:
        runner.test()
    if not kwargs:  # the model was not cut
        for name, tensor in runner.model.state_dict().items():
            assert tensor.shape == before[name].shape
    return str(error.value)


def test_hook_meets_a_structure_of_another_model(tmp_path, pruned):
    text = load_changed(
        tmp_path,
        pruned,
        lambda checkpoint: None,
        model=dict(type='ToyClassifier', width=16),
    )
    assert 'does not fit ToyClassifier: layer conv1' in text


def test_hook_meets_a_damaged_structure(tmp_path, pruned):
    def change(checkpoint):
        del checkpoint['mmgfp_structure']['cost']

    text = load_changed(tmp_path, pruned, change)
    assert 'the checkpoint is damaged' in text


def test_hook_meets_a_structure_of_another_version(tmp_path, pruned):
    def change(checkpoint):
        checkpoint['mmgfp_structure']['version'] = 7

    text = load_changed(tmp_path, pruned, change)
    assert 'the checkpoint has version 7' in text


def published(pruned: Path, path: Path) -> str:
    """Without the structure, as the libraries' publish_model.py leaves it."""
    checkpoint = load(pruned)
    torch.save({k: checkpoint[k] for k in ('meta', 'state_dict')}, path)
    return str(path)


def test_published_checkpoint_is_not_tested(tmp_path, pruned):
    """MMEngine's own runner would test a network that is mostly random."""
    path = published(pruned, tmp_path / 'published.pth')
    config = make_config(tmp_path, load_from=path, **validated())
    with pytest.raises(ValueError) as error:
        Runner.from_cfg(config).test()
    text = str(error.value)
    assert f'the checkpoint {path} does not fit the config' in text
    assert '--save-keys meta state_dict mmgfp_structure' in text
    assert 'the config generated' in text


def test_published_checkpoint_is_not_pruned(tmp_path, pruned):
    path = published(pruned, tmp_path / 'published.pth')
    text = refused(tmp_path, load_from=path, hook=dict(target=dict(flops=0.3)))
    assert 'does not fit the config' in text
    assert '--save-keys' in text


def test_published_checkpoint_with_the_generated_config(tmp_path, pruned):
    path = published(pruned, tmp_path / 'published.pth')
    config = Config.fromfile(f'{pruned.with_suffix("")}_finetune.py')
    expected = load(pruned)['state_dict']
    config.load_from = path
    config.work_dir = str(tmp_path)
    config.merge_from_dict(validated())
    runner = Runner.from_cfg(config)
    runner.test()
    for name, tensor in runner.model.state_dict().items():
        assert tensor.equal(expected[name]), name


def test_generated_config_for_other_classes(tmp_path, pruned):
    """The head starts anew; all that pruning left is loaded."""
    config = Config.fromfile(f'{pruned.with_suffix("")}_finetune.py')
    expected = load(pruned)['state_dict']
    config.model.classes = len(expected['head.bias']) + 3
    config.work_dir = str(tmp_path)
    config.merge_from_dict(validated())
    runner = Runner.from_cfg(config)
    with pytest.warns(UserWarning, match='2 tensors have another size'):
        runner.test()
    for name, tensor in runner.model.state_dict().items():
        if not name.startswith('head.'):
            assert tensor.equal(expected[name]), name
    assert len(runner.model.head.bias) == config.model.classes


def test_generated_config_with_a_structure_of_weights(tmp_path, pruned):
    """It cuts no layer, but slim weights do not fit the whole network."""
    structure = Structure(
        {}, density={'conv1.weight': Density(weights=864, left=100)}
    )
    structure.save(tmp_path / 'density.json')
    config = Config.fromfile(f'{pruned.with_suffix("")}_finetune.py')
    config.work_dir = str(tmp_path)
    config.merge_from_dict(validated())
    config.load_from = str(pruned)
    for hook in (*config.custom_hooks, config.model):
        if 'structure' in hook:
            hook.structure = str(tmp_path / 'density.json')
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError, match='does not fit the config'):
        runner.test()


def full_weights(path: Path) -> str:
    torch.save(dict(state_dict=ToyClassifier().state_dict()), path)
    return str(path)


def test_full_weights_with_the_generated_config(tmp_path, pruned):
    """By any of those who load: the hook in it, or the model alone."""
    config = Config.fromfile(f'{pruned.with_suffix("")}_finetune.py')
    config.load_from = full_weights(tmp_path / 'full.pth')
    config.work_dir = str(tmp_path)
    config.merge_from_dict(validated())
    with pytest.raises(ValueError, match=r'conv1\.weight has shape \(12, 8'):
        Runner.from_cfg(config).test()
    config.custom_hooks = []
    config.experiment_name = 'without_hooks'
    with pytest.raises(ValueError, match='the weights do not fit the slim'):
        Runner.from_cfg(config).test()


@pytest.mark.parametrize('lost', ['conv1.weight', 'head.bias'])
def test_part_of_the_weights(tmp_path, lost):
    weights = ToyClassifier().state_dict()
    del weights[lost]
    path = tmp_path / 'part.pth'
    torch.save(dict(state_dict=weights), path)
    text = refused(tmp_path, load_from=str(path))
    assert f"1 are missing ('{lost}')" in text


def one_line(result, code: int = 2) -> str:
    assert result.returncode == code, result.stderr[-3000:]
    (line,) = [
        line
        for line in result.stderr.splitlines()
        if line.startswith('error: ')
    ]
    assert 'Traceback' not in result.stderr
    return line


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('tool', ['test.py', 'train.py'])
def test_checkpoint_that_runs_code_through_the_tool(tmp_path, tool):
    """MMEngine would unpickle it."""
    bad, made = tmp_path / 'bad.pth', tmp_path / 'made'
    weights = ToyClassifier().state_dict()
    torch.save(dict(state_dict=weights, meta=RunsCode(made)), bad)
    config = write_config(tmp_path / 'config.py', tmp_path, **validated())
    words = [bad] if tool == 'test.py' else ['--resume', bad]
    line = one_line(run_tool(tool, config, *words))
    assert f'{bad} holds objects other than tensors' in line
    assert '(posix.mkdir)' in line and '--trust-checkpoint' in line
    assert not made.exists()
    if tool == 'test.py':
        run_tool(tool, config, *words, '--trust-checkpoint')
        assert made.exists()


def test_truncated_checkpoint_through_the_tool(tmp_path, pruned):
    short = tmp_path / 'short.pth'
    short.write_bytes(pruned.read_bytes()[:-500])
    config = write_config(tmp_path / 'config.py', tmp_path, **validated())
    line = one_line(run_tool('test.py', config, short))
    assert str(short) in line
    assert 'truncated, damaged or no checkpoint' in line


def test_slim_checkpoint_with_the_full_config(tmp_path, pruned):
    config = make_config(tmp_path, **validated())
    config.custom_hooks = []  # nothing makes the network slim
    config.dump(tmp_path / 'config.py')
    line = one_line(run_tool('test.py', tmp_path / 'config.py', pruned))
    assert 'does not fit the config' in line and str(pruned) in line
    assert 'the config generated' in line


def test_unreadable_configs_through_the_tool(tmp_path):
    for name, text, words in (
        ('syntax.py', 'model = dict(\n', 'SyntaxError'),
        ('base.py', "_base_ = 'gone.py'\n", 'gone.py'),
        ('README.md', '# no config\n', 'py/yml'),
        (
            'own.py',
            "custom_imports = dict(imports=['mmgfp', 'my_criterion'])\n",
            "there is no module 'my_criterion'. A module of your own in "
            '`custom_imports` must be in a folder of PYTHONPATH',
        ),
        (  # an optional import is not the cause
            'optional.py',
            'try:\n    import no_such_module\nexcept ImportError:\n'
            "    raise ValueError('no width')\n",
            'ValueError: no width',
        ),
    ):
        path = tmp_path / name
        path.write_text(text)
        line = one_line(run_tool('train.py', path))
        assert f"the config '{path}' cannot be read: " in line
        assert words in line


def test_unknown_setting_of_the_model_through_the_tool(tmp_path):
    config = write_config(tmp_path / 'config.py', tmp_path)
    options = ('--cfg-options', 'model.bogus=3')
    line = one_line(run_tool('train.py', config, *options), code=1)
    assert 'TypeError' in line and "argument 'bogus'" in line
    assert 'has the traceback; --debug shows it' in line
    shown = run_tool('train.py', config, *options, '--debug')
    assert 'Traceback' in shown.stderr


def test_no_images_to_train_with(tmp_path):
    config = write_config(tmp_path / 'config.py', tmp_path)
    options = ('--cfg-options', 'train_dataloader=None')
    line = one_line(run_tool('train.py', config, *options))
    assert 'train_dataloader is not set: expected the images' in line


def test_unknown_argument_through_the_tool(tmp_path):
    config = write_config(
        tmp_path / 'config.py', tmp_path, hook=dict(intervall=5)
    )
    line = one_line(run_tool('train.py', config))
    assert "intervall=5; did you mean 'interval'?" in line


def test_unknown_argument_of_a_hook_that_hands_arguments_on():
    class Own(FisherPruningHook):
        def __init__(self, *args, strength=1, **kwargs):
            super().__init__(*args, **kwargs)

    with pytest.raises(ValueError) as error:
        Own(target=HALF, strength=2, intervall=5)
    text = str(error.value)
    assert "intervall=5; did you mean 'interval'?" in text
    assert 'Own has no argument' in text
    assert 'strength, target, criterion, interval,' in text
    assert not {'args', 'kwargs', 'unknown'} & set(text.split(', '))


# -- batches without finite loss ---------------------------------------------


class Spy(Stop):
    """Notes weights before each iteration and after the last."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.seen.append(
            {k: v.clone() for k, v in runner.model.state_dict().items()}
        )

    after_train = before_train_iter


@pytest.mark.parametrize('kind', ['nan', 'inf', 'image'])
@pytest.mark.parametrize('norm', ['GN', 'BN'])
def test_bad_batch_is_skipped(tmp_path, kind, norm):
    bad = dict(broken=[9]) if kind == 'image' else dict(factors={9: kind})
    config = make_config(
        tmp_path,
        model=dict(type='ToyClassifier', norm=norm),
        train_dataloader=loader(shuffle=False, **bad),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        hook=dict(interval=3, channels_per_step=1, target=dict(flops=0.9)),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
            clip_grad=dict(max_norm=1.0),
        ),
        log_level='INFO',
    )
    runner = Runner.from_cfg(config)
    spy = Spy()
    runner.register_hook(spy)
    runner.train()
    # image 9 is in the second of four batches
    changed = [
        any(not a[k].equal(b[k]) for k in a)
        for a, b in zip(spy.seen, spy.seen[1:])
    ]
    assert changed == [True, False, True, True]
    # and that batch does not count towards the interval of three
    assert [r['iter'] for r in removals(tmp_path)] == [4]
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert 'iteration 2: gradients are not finite' in text
    assert 'the batch is skipped (1 so far)' in text
    for name, tensor in runner.model.state_dict().items():
        assert tensor.isfinite().all(), name


def test_bad_batch_among_accumulated_ones(tmp_path, waits):
    config = make_config(
        tmp_path,
        train_dataloader=loader(shuffle=False, factors={0: 'nan'}),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        hook=dict(interval=1, channels_per_step=1, target=dict(flops=0.9)),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.01), accumulative_counts=2
        ),
    )
    runner = Runner.from_cfg(config)
    runner.train()
    for name, tensor in runner.model.state_dict().items():
        assert tensor.isfinite().all(), name


def test_bad_batches_have_no_score(tmp_path, waits):
    def scores(factor, images):
        config = make_config(
            tmp_path / str(factor),
            train_dataloader=loader(
                shuffle=False, factors=dict.fromkeys(range(images), factor)
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            # it ends before that
            hook=dict(interval=4, channels_per_step=1, after_target='train'),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.0), accumulative_counts=2
            ),
        )
        config.custom_hooks += [dict(type='Stop', iteration=4)]
        runner = Runner.from_cfg(config)
        torch.manual_seed(0)
        for parameter in runner.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        return sums(pruning_hook(runner).pruner)

    # the first of four batches is bad, or does not count; who does not wait
    # loses the second of the same step as well
    without = scores(0.0, 8 if waits else 16)
    for a, b in zip(scores('inf', 8), without, strict=True):
        assert a.any()
        assert (a == b).all()


def test_too_many_bad_batches_stop_the_run(tmp_path):
    config = make_config(
        tmp_path,
        train_dataloader=loader(
            shuffle=False, factors=dict.fromkeys(range(32), 'nan')
        ),
        train_cfg=dict(by_epoch=True, max_epochs=20),
    )
    runner = Runner.from_cfg(config)
    with pytest.raises(RuntimeError) as error:
        runner.train()
    assert f'in {MAX_SKIPPED} batches in a row' in str(error.value)
    assert 'Lower the learning rate' in str(error.value)
    assert runner.iter == MAX_SKIPPED - 1


# -- interrupted writing -----------------------------------------------------


@pytest.mark.parametrize(
    'function', ['torch.save', 'os.replace', 'json.dumps']
)
def test_interrupted_writing(tmp_path, monkeypatch, function):
    """Nothing is left under a final name that is not complete."""
    module, name = function.split('.')
    target = {'torch': torch, 'os': os, 'json': __import__('json')}[module]
    real, calls = getattr(target, name), []

    def fail(*args, **kwargs):
        saving = [a for a in args if 'partial' in str(a)]
        if saving or name == 'dumps':
            calls.append(args)
            if name == 'save':  # half of the file is there
                Path(args[1]).write_bytes(b'half')
            raise OSError('no space left on device')
        return real(*args, **kwargs)

    runner = Runner.from_cfg(make_config(tmp_path))
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(OSError, match='no space left'):
        runner.train()
    monkeypatch.undo()
    assert len(calls) == 1
    assert not list(tmp_path.glob('flops_*'))


@pytest.mark.parametrize('how', ['missing', 'fails'])
def test_pictures_that_cannot_be_drawn_end_no_run(
    tmp_path, monkeypatch, draw, how
):
    drawer = 'mmgfp.report.picture.draw_kept_channels'
    monkeypatch.setattr(drawer, draw)
    (tmp_path / 'flops_0.50.png').write_text('of an earlier run')
    if how == 'missing':
        # not imported anew: a second copy of a module would outlive the test
        for name in ('mmgfp.report.picture', 'mmgfp.report.page'):
            monkeypatch.setitem(sys.modules, name, None)
    else:
        saving = 'matplotlib.figure.Figure.savefig'
        monkeypatch.setattr(saving, lambda *_, **__: 1 / 0)
        drawing = 'matplotlib.backends.backend_agg.FigureCanvasAgg.print_png'
        monkeypatch.setattr(drawing, lambda *_, **__: 1 / 0)
    runner = train(tmp_path, hook=dict(report=True))
    assert pruning_hook(runner).pruner.net.ratio('flops') <= 0.5
    assert not list(tmp_path.glob('*.png'))
    left = sorted(p.name for p in tmp_path.glob('flops_0.50*'))
    ends = '.json', '.pth', '_finetune.py'
    assert left == [f'flops_0.50{end}' for end in ends]
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    error = dict(missing='ModuleNotFoundError', fails='ZeroDivisionError')[how]
    for stem in ('flops_0.75', 'flops_0.50'):
        assert f'{stem}.png was not drawn: {error}' in text
    if how == 'missing':
        assert 'the report was not written: ModuleNotFoundError' in text


def test_weights_of_another_network(tmp_path):
    """MMEngine only warns and would prune random weights."""
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'blocks.0.weight': torch.ones(2)}), path)
    runner = Runner.from_cfg(make_config(tmp_path, load_from=str(path)))
    with pytest.raises(ValueError, match=r'other\.pth has no tensor of the'):
        runner.train()
