"""Interrupted and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from processes import run_tool
from toy import (
    load,
    loader,
    make_config,
    pruning_hook,
    removals,
    validated,
    write_config,
)

from mmgfp import Structure, __version__
from mmgfp.engine.progress import Tally
from mmgfp.engine.state import STATE_KEY, STATE_VERSION, read_state, stamped

AUGMENTED = loader(augment=True)
INFINITE = dict(AUGMENTED, sampler=dict(type='InfiniteSampler', shuffle=True))
# checkpoints lie between two pruning steps: 3 divides neither 4 nor 5
EPOCHS = dict(train_dataloader=AUGMENTED)
ITERATIONS = dict(
    train_dataloader=INFINITE,
    train_cfg=dict(by_epoch=False, max_iters=24, val_interval=5),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)
    ),
)
STOP_AFTER = 5  # iterations


def settings(**changes) -> dict:
    """Everything that has state or draws random numbers."""
    result = dict(
        hook=dict(after_target='train'),
        model=dict(type='ToyClassifier', norm='BN', dropout=0.2),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1)
        ),
        param_scheduler=dict(
            type='LinearLR', start_factor=0.1, begin=0, end=20, by_epoch=False
        ),
    )
    result.update(changes)
    return result


def run(config, *extra_hooks, resume=False) -> Runner:
    config = config.copy()
    config.custom_hooks = [*config.custom_hooks, *extra_hooks]
    config.resume = resume
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def assert_same(one: Runner, other: Runner) -> None:
    assert removals(one.work_dir) == removals(other.work_dir)
    assert len(removals(one.work_dir)) >= 3
    a, b = one.model.state_dict(), other.model.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].equal(b[name]), name
    a, b = one.optim_wrapper.state_dict(), other.optim_wrapper.state_dict()
    for key, state in a['state'].items():
        for name, value in state.items():
            assert torch.equal(value, b['state'][key][name]), (key, name)


EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)


@pytest.mark.parametrize(
    'changes, stop',
    [
        (dict(EPOCHS, model=dict(type='Necked'), freeze=(7, 10)), 9),
        (EPOCHS, 5),
        (dict(EPOCHS, **validated(augment=True)), 9),
        (ITERATIONS, 7),
        (dict(ITERATIONS, **validated(augment=True)), 11),
        (
            dict(
                optim_wrapper=dict(
                    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
                    accumulative_counts=2,
                ),
                train_dataloader=loader(augment=True, size=64),
                train_cfg=dict(by_epoch=True, max_epochs=3),
                hook=dict(interval=2, after_target='train'),
            ),
            9,
        ),
        (
            dict(
                optim_wrapper=dict(
                    type='CpuAmpOptimWrapper',
                    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
                ),
            ),
            5,
        ),
        # the slim network has groups of one unit, and whole groups of equal
        # first positions
        (
            dict(
                EPOCHS,
                hook=dict(target=dict(flops=0.12), after_target='train'),
            ),
            13,
        ),
        # most steps have no calibration pass
        (
            dict(
                EPOCHS,
                hook=dict(
                    criterion=dict(type='KFAC', batches=2),
                    interval=1,
                    channels_per_step='auto',
                    round_to=2,
                    after_target='train',
                ),
            ),
            9,
        ),
    ],
    ids=[
        'frozen',
        'epochs',
        'validated',
        'iters',
        'iters-validated',
        'accumulated',
        'amp',
        'few-left',
        'few-passes',
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, waits, changes, stop):
    kwargs = settings(**changes)
    hooks = [EMA]
    if 'freeze' in kwargs:
        begin, end = kwargs.pop('freeze')
        freeze = dict(type='Freeze', part='backbone', begin=begin, end=end)
        hooks.append(freeze)
    whole = run(make_config(tmp_path / 'whole', **kwargs), *hooks)
    interrupted = tmp_path / 'interrupted'
    with pytest.raises(KeyboardInterrupt):
        run(
            make_config(interrupted, **kwargs),
            *hooks,
            dict(type='Stop', iteration=stop),
        )
    forget_after_checkpoint(interrupted)
    torch.manual_seed(123)  # another process would start elsewhere
    resumed = run(make_config(interrupted, **kwargs), *hooks, resume=True)
    assert_same(whole, resumed)
    assert whole.iter == resumed.iter == 24


def forget_after_checkpoint(work_dir: Path) -> None:
    """Drop what the log holds of iterations that will be done again."""
    last = load(Path((work_dir / 'last_checkpoint').read_text()))
    log = work_dir / 'removals_0.jsonl'
    if log.exists():
        lines = [
            line
            for line, r in zip(
                log.read_text().splitlines(True),
                removals(work_dir),
                strict=True,
            )
            if r['iter'] <= last['meta']['iter']
        ]
        log.write_text(''.join(lines))


def test_resumed_after_the_target_stops_at_once(tmp_path):
    done = run(make_config(tmp_path, **EPOCHS))
    resumed = run(make_config(tmp_path, **EPOCHS), resume=True)
    assert resumed.iter == done.iter == 12
    for name, tensor in resumed.model.state_dict().items():
        assert tensor.equal(done.model.state_dict()[name]), name
    assert not resumed.optim_wrapper.optimizer._optimizer_step_pre_hooks


def log_of(work_dir) -> str:
    return ''.join(f.read_text() for f in work_dir.rglob('*.log'))


def test_resumed_with_another_target(tmp_path):
    run(make_config(tmp_path, log_level='INFO', **EPOCHS))
    hook = dict(target=dict(flops=0.9))
    again = make_config(tmp_path, log_level='INFO', hook=hook, **EPOCHS)
    run(again, resume=True)
    log = log_of(tmp_path)
    assert "target={'flops': 0.9} instead of {'flops': 0.5}" in log
    assert 'the checkpoint has reached the target' in log
    assert 'flops_0.90_finetune.py' not in log  # there is none


def test_pruning_goes_on_from_a_saved_ratio(tmp_path):
    """Loading (not resuming) 0.75 and pruning on to half."""
    run(make_config(tmp_path / 'first', hook=dict(target=dict(flops=0.75))))
    saved = tmp_path / 'first' / 'flops_0.75.pth'
    again = run(make_config(tmp_path / 'again', load_from=str(saved)))
    ratio = pruning_hook(again).pruner.net.ratio('flops')
    assert 0.3 < ratio <= 0.5
    first = Structure.load(saved)
    second = Structure.load(tmp_path / 'again' / 'flops_0.50.json')
    assert second.cost_before == first.cost_before
    for key, axis in first.axes.items():
        assert set(second.axes[key].keep) <= set(axis.keep)
    # what was saved in the first run is not saved again
    assert not (tmp_path / 'again' / 'flops_0.75.pth').exists()


def test_resuming_needs_the_same_groups(tmp_path):
    kwargs = settings(**EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(tmp_path, **kwargs), dict(type='Stop', iteration=5))
    kwargs['model'] = dict(type='ToyClassifier', norm='BN', width=14)
    with pytest.raises(ValueError, match=r'scores of|does not fit'):
        run(make_config(tmp_path, **kwargs), resume=True)


@pytest.mark.parametrize(
    'hook',
    [
        dict(type='mmgfp.PruningHook', target=dict(flops=0.9)),
        dict(
            type='mmgfp.SparsityHook',
            density=0.5,
            criterion=dict(type='Magnitude'),
        ),
        dict(
            type='mmgfp.SearchHook',
            target=dict(flops=0.9),
            search=dict(type='Uniform'),
        ),
    ],
    ids=lambda hook: hook['type'],
)
def test_resumed_from_a_training_without_the_hook(tmp_path, hook):
    """Pruning starts there, and the log says so."""
    kwargs = settings(**EPOCHS)
    config = make_config(tmp_path, **kwargs)
    config.custom_hooks = [dict(type='Stop', iteration=5)]
    with pytest.raises(KeyboardInterrupt):
        run(config)
    config = make_config(tmp_path, **kwargs)
    config.custom_hooks = [dict(hook, input_shape=(16, 16))]
    config.log_level = 'INFO'
    run(config, resume=True)
    *_, log = sorted(tmp_path.glob('*/*.log'))
    kind = hook['type'].removeprefix('mmgfp.')
    assert (
        f'the resumed checkpoint is not of a run with this {kind}: pruning '
        'starts after iteration 4 of 24. For a whole run use load_from'
    ) in log.read_text()
    assert 'untrained' not in log.read_text()


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory) -> Path:
    """A checkpoint between two pruning steps."""
    work_dir = tmp_path_factory.mktemp('interrupted')
    config = make_config(work_dir, **settings(**EPOCHS))
    with pytest.raises(KeyboardInterrupt):
        run(config, dict(type='Stop', iteration=5))
    return work_dir / 'epoch_1.pth'


def resume(interrupted: Path, tmp_path: Path, change) -> Runner:
    """Go on from a checkpoint with another state."""
    checkpoint = load(interrupted)
    change(checkpoint[STATE_KEY])
    torch.save(checkpoint, tmp_path / 'changed.pth')
    config = make_config(
        tmp_path,
        load_from=str(tmp_path / 'changed.pth'),
        **settings(**EPOCHS),
    )
    return run(config, resume=True)


def test_state_says_its_version(interrupted):
    state = load(interrupted)[STATE_KEY]
    assert state['version'] == STATE_VERSION
    assert state['mmgfp'] == __version__


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(version=STATE_VERSION + 1, mmgfp='7.1'), "by mmgfp '7.1'"),
        (dict(version='2'), "in version '2'; this mmgfp .* versions 1 to 3"),
        (dict(version=0), 'in version 0'),
        (dict(pruner=None), 'in which pruner is missing'),
        (dict(random=3), 'in which random is missing'),
        (dict(tally={}), r'in which tally\.removed is missing'),
        (dict(tally=[]), 'in which tally is missing'),
    ],
    ids=str,
)
def test_states_that_cannot_be_resumed(change, words):
    state = stamped(
        dict(pruner={}, tally=asdict(Tally()), target={}, random=[])
    )
    assert read_state(state) is state
    with pytest.raises(ValueError, match=words) as error:
        read_state(dict(state, **change))
    assert '\n' not in str(error.value)
    assert 'continue from this one with load_from' in str(error.value)


def test_state_of_a_later_release_is_not_resumed(interrupted, tmp_path):
    with pytest.raises(ValueError, match='the state of pruning in version 9'):
        resume(interrupted, tmp_path, lambda state: state.update(version=9))


def test_state_without_version_is_resumed(interrupted, tmp_path):
    """As it was before states had one."""

    def change(state):
        del state['version'], state['mmgfp']

    assert resume(interrupted, tmp_path, change).iter == 24


def test_state_without_version_that_is_incomplete(interrupted, tmp_path):
    def change(state):
        del state['version'], state['mmgfp'], state['tally']['steps']

    with pytest.raises(ValueError, match=r'tally\.steps is missing'):
        resume(interrupted, tmp_path, change)


def test_killed_between_two_pruning_steps(tmp_path):
    kwargs = settings(**EPOCHS, **validated())
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for work_dir in (whole, killed):
        work_dir.mkdir()
    config = write_config(tmp_path / 'whole.py', whole, **kwargs)
    result = run_tool('train.py', config)
    assert result.returncode == 0, result.stderr[-3000:]

    config = make_config(killed, **kwargs)
    config.custom_hooks += [dict(type='Stop', iteration=10, kill=True)]
    config.dump(tmp_path / 'killed.py')
    result = run_tool('train.py', tmp_path / 'killed.py')
    assert result.returncode == -signal.SIGKILL
    assert not list(killed.glob('*.partial*'))

    forget_after_checkpoint(killed)
    config = write_config(tmp_path / 'resumed.py', killed, **kwargs)
    result = run_tool('train.py', config, '--resume')
    assert result.returncode == 0, result.stderr[-3000:]
    assert removals(whole) == removals(killed)
    for name in ('flops_0.50', 'flops_0.75', 'epoch_6'):
        a, b = (load(d / f'{name}.pth') for d in (whole, killed))
        assert (
            a['mmgfp_structure']['tensors']
            == (b['mmgfp_structure']['tensors'])
        )
        for key, tensor in a['state_dict'].items():
            assert tensor.equal(b['state_dict'][key]), (name, key)


def test_resume_before_the_first_checkpoint_starts_anew(tmp_path):
    """With the trained weights of ``load_from``, not with random ones."""
    baseline = tmp_path / 'baseline.pth'
    kwargs = settings(**EPOCHS, **validated())
    model = MODELS.build(make_config(tmp_path, **kwargs).model)
    torch.save(dict(state_dict=model.state_dict()), baseline)
    config = make_config(tmp_path / 'work', **kwargs)
    config.load_from = str(baseline)
    config.dump(tmp_path / 'config.py')
    result = run_tool('train.py', tmp_path / 'config.py', '--resume')
    assert result.returncode == 0, result.stderr[-3000:]
    output = result.stdout + result.stderr
    assert 'no checkpoint' in output and 'starts from the beginning' in output
    used = Config.fromfile(tmp_path / 'work' / 'config.py')
    assert used.load_from == str(baseline) and not used.resume
