"""Two and three processes (gloo) against one, through the real tool."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import LAUNCHERS, LIMIT, launch, run_tool
from toy import load, loader, make_config, removals, write_config


def data(batch_size: int, **kwargs) -> dict:
    return dict(train_dataloader=loader(batch_size, size=48, **kwargs))


def final(work_dir: Path, name: str = 'flops_0.50.pth') -> dict:
    return load(work_dir / name)['state_dict']


def run_and_resume(
    tmp_path: Path, *, rank: int | None = None, **kwargs: Any
) -> tuple[Path, Path, list[tuple[int, str]]]:
    """Train as a whole, and killed in iteration 9 and resumed.

    Args:
        tmp_path: Where both runs go.
        rank: The process that is killed; None: all of them.
        **kwargs: Of the config; a pruning step every 4 iterations.

    Returns:
        Work dirs of both, and how the killed processes ended.
    """
    kwargs.update(
        hook=dict(interval=4, after_target='train'),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for work_dir in (whole, killed):
        work_dir.mkdir()
    launch(write_config(tmp_path / 'whole.py', whole, **kwargs))
    config = make_config(killed, **kwargs)
    which = {} if rank is None else dict(rank=rank)
    stop = dict(type='Stop', iteration=9, kill=True, **which)
    config.custom_hooks += [stop]
    config.dump(tmp_path / 'killed.py')
    ends = launch(tmp_path / 'killed.py', expected=None)
    for log in killed.glob('removals_*.jsonl'):  # done again after epoch 1
        log.write_text(log.read_text().splitlines(True)[0])
    launch(write_config(tmp_path / 'again.py', killed, **kwargs), '--resume')
    return whole, killed, ends


@pytest.fixture(scope='module')
def half_batches(tmp_path_factory) -> Path:
    """What two processes with half a batch each leave."""
    work_dir = tmp_path_factory.mktemp('half')
    config = write_config(work_dir / 'config.py', work_dir, **data(4))
    launch(config)
    return work_dir


def test_both_ranks_decide_the_same(half_batches):
    first, second = (removals(half_batches, rank) for rank in (0, 1))
    assert first == second
    assert len(first) > 3


def assert_same_run(one: Path, other: Path) -> None:
    assert removals(one) == removals(other)
    ours, theirs = final(one), final(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name
        )


@pytest.mark.parametrize('kind', ['Taylor', 'KFAC', 'L2'])
def test_each_kind_of_criterion(tmp_path, kind):
    """Of gradients, of a calibration pass, and of weights alone."""
    criterion = dict(type=kind)
    if kind == 'KFAC':  # drawn labels differ between processes
        criterion |= dict(batches=3, fisher='empirical')
    one, two = tmp_path / 'one', tmp_path / 'two'
    for work_dir, batch_size in ((one, 8), (two, 4)):
        work_dir.mkdir()
        config = write_config(
            work_dir / 'config.py',
            work_dir,
            hook=dict(criterion=criterion),
            **data(batch_size),
        )
        if work_dir == two:
            launch(config)
        else:
            done = run_tool('train.py', config, timeout=LIMIT)
            assert done.returncode == 0, done.stderr
    assert removals(two, 0) == removals(two, 1)
    assert len(removals(one)) > 3
    assert_same_run(one, two)


def searching(work_dir: Path, batch_size: int, *hooks: dict) -> Path:
    """A config that learns widths."""
    config = make_config(work_dir, **data(batch_size))
    search = dict(type='mmgfp.SearchHook', search=dict(type='DCSS'))
    search.update(target=dict(flops=0.5), input_shape=(8, 8))
    config.custom_hooks = [search, *hooks]
    path = work_dir.with_suffix(f'.{len(hooks)}.py')
    config.dump(path)
    return path


def test_searches_learn_the_same_on_all_ranks(tmp_path):
    """As one process does; killed and resumed, too."""
    one, two, killed = (tmp_path / n for n in ('one', 'two', 'killed'))
    done = run_tool('train.py', searching(one, 8), timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    launch(searching(two, 4))
    stop = dict(type='Stop', iteration=15, kill=True)
    launch(searching(killed, 4, stop), expected=None)
    launch(searching(killed, 4), '--resume')
    ours, theirs, again = (final(d) for d in (one, two, killed))
    assert ours.keys() == theirs.keys() == again.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name
        )
        assert again[name].equal(tensor), name


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_do_the_same(half_batches, tmp_path, launcher):
    config = write_config(tmp_path / 'config.py', tmp_path, **data(4))
    launch(config, launcher=launcher)
    assert removals(tmp_path) == removals(half_batches)
    expected = final(half_batches)
    for name, tensor in final(tmp_path).items():
        assert tensor.equal(expected[name]), name


def test_the_strategy_of_distributed_training(half_batches, tmp_path):
    """Networks that are cut are wrapped anew by it."""
    config = make_config(tmp_path, **data(4))
    config.runner_type = 'FlexibleRunner'
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        device_ids=None,  # on a CPU
    )
    config.strategy = dict(type='DDPStrategy', model_wrapper=wrapper)
    config.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    config.dump(tmp_path / 'config.py')
    launch(tmp_path / 'config.py')
    assert removals(tmp_path) == removals(half_batches)
    assert removals(tmp_path, 1) == removals(tmp_path)
    expected = final(half_batches)
    for name, tensor in final(tmp_path).items():
        assert tensor.equal(expected[name]), name


@pytest.mark.parametrize(
    'launcher, told, words',
    [
        ('pytorch', {}, 'has no RANK; expected to be started by torchrun'),
        ('slurm', {}, 'has no SLURM_PROCID; expected to be started by srun'),
        ('mpi', {}, "has no OMPI_COMM_WORLD_RANK; expected .* Open MPI's"),
        ('mpi', LAUNCHERS['mpi'], 'has no MASTER_ADDR; expected the address'),
    ],
)
def test_launchers_that_did_not_start_it(tmp_path, launcher, told, words):
    config = write_config(tmp_path / 'config.py', tmp_path)
    given = {
        name: value.format(rank=0, ranks=1) for name, value in told.items()
    }
    done = run_tool('train.py', config, '--launcher', launcher, **given)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert re.search(f'error: --launcher {launcher}: .*{words}', line)


def test_equal_to_one_process_with_whole_batches(half_batches, tmp_path):
    config = write_config(tmp_path / 'config.py', tmp_path, **data(8))
    result = run_tool('train.py', config, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    assert_same_run(half_batches, tmp_path)


def test_three_processes_that_mask(tmp_path):
    """Also where channels are cut out late, and the wrapper made anew then."""
    one, three = tmp_path / 'one', tmp_path / 'three'
    for work_dir in (one, three):
        work_dir.mkdir()
    config = write_config(tmp_path / 'one.py', one, **data(12))
    result = run_tool('train.py', config, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    config = write_config(
        tmp_path / 'three.py', three, hook=dict(cut_to=4), **data(4)
    )
    launch(config, ranks=3)
    assert_same_run(three, one)
    for rank in (1, 2):
        assert removals(three, rank) == removals(three)


@pytest.mark.parametrize('cut_to', [1, 0])
def test_ranks_that_leave_layers_unused(tmp_path, cut_to):
    """Each rank leaves a branch without gradients in other iterations."""
    kwargs = dict(
        data(4),
        model=dict(type='Skipping'),
        hook=dict(cut_to=cut_to),
        find_unused_parameters=True,
    )
    launch(write_config(tmp_path / 'config.py', tmp_path, **kwargs))
    assert removals(tmp_path, 0) == removals(tmp_path, 1)
    assert len(removals(tmp_path)) > 3


def test_unequal_batches(tmp_path):
    """49 images are 25 and 24; the last batches are of 5 and 4."""
    kwargs = dict(train_dataloader=loader(10, size=49))
    kwargs['train_dataloader']['sampler'].update(round_up=False)
    launch(write_config(tmp_path / 'config.py', tmp_path, **kwargs))
    assert removals(tmp_path, 0) == removals(tmp_path, 1)
    assert len(removals(tmp_path)) > 2


def test_a_rank_that_dies_ends_the_run(tmp_path):
    """With an error, not with a hang; then it goes on where it was saved."""
    whole, broken, ends = run_and_resume(tmp_path, rank=1, **data(4))
    (first, output), (second, _) = ends
    assert second == -signal.SIGKILL
    assert first not in (0, -signal.SIGKILL)
    assert 'Error' in output
    assert removals(broken) == removals(whole)


def test_a_rank_that_hangs_ends_the_run_within_the_timeout(tmp_path):
    config = make_config(tmp_path / 'run', **data(4))
    config.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=10))
    config.custom_hooks += [dict(type='Stop', iteration=5, rank=1, hang=True)]
    (tmp_path / 'run').mkdir()
    config.dump(tmp_path / 'config.py')
    (first, output), _ = launch(
        tmp_path / 'config.py', expected=None, stop_after=0
    )
    assert first not in (0, -signal.SIGKILL)
    assert 'Timed out' in output or 'timeout' in output.lower()


@pytest.mark.parametrize('waits', [True, False])
def test_scores_that_are_infinite_on_one_rank(tmp_path, waits):
    """Gradients are finite after all: both skip the batch, none waits."""
    config = make_config(tmp_path, **data(4))
    config.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=20))
    overflow = dict(type='Overflow', rank=1, iterations=[0, 4])
    config.custom_hooks += [overflow]
    if not waits:
        config.custom_hooks += [dict(type='NeverWait')]
    config.dump(tmp_path / 'config.py')
    launch(tmp_path / 'config.py')
    assert removals(tmp_path, 0) == removals(tmp_path, 1)
    # the third and the sixth that count; without waiting, all of them do
    first = [4, 8] if waits else [3, 6]
    assert [r['iter'] for r in removals(tmp_path)][:2] == first


def test_one_process_saves_in_between(tmp_path):
    """What is masked is cut out of the checkpoint only, without the other."""
    config = make_config(
        tmp_path / 'run', hook=dict(cut_to=0, save_at=[]), **data(4)
    )
    config.custom_hooks += [dict(type='SaveOften', interval=4)]
    config.dump(tmp_path / 'config.py')
    launch(tmp_path / 'config.py')
    assert removals(tmp_path / 'run', 0) == removals(tmp_path / 'run', 1)
    saved = load(tmp_path / 'run' / 'often_8.pth')
    (at,) = [r for r in removals(tmp_path / 'run') if r['iter'] == 6]
    assert saved['mmgfp_structure']['tensors'] == at['left']
    for name, axes in at['left'].items():
        for axis, entry in axes.items():
            size = sum(end - begin for begin, end in entry['keep'])
            assert saved['state_dict'][name].shape[int(axis)] == size


def test_a_failure_to_save_ends_all_processes(tmp_path):
    """With what went wrong, long before the timeout of half an hour."""
    config = make_config(tmp_path / 'run', **data(4))
    config.custom_hooks += [dict(type='FullDisk')]
    config.dump(tmp_path / 'config.py')
    began = time.monotonic()
    ends = launch(tmp_path / 'config.py', expected=None)
    assert time.monotonic() - began < LIMIT / 2
    assert all(code not in (0, -signal.SIGKILL) for code, _ in ends)
    words = 'No space left on device'
    assert words in ends[0][1]
    assert 'process 0 failed while saving flops_0.75' in ends[1][1]
    assert words in ends[1][1]
    assert not list((tmp_path / 'run').glob('flops_*'))


def test_ranks_that_choose_otherwise(tmp_path):
    """Checked, not assumed."""
    config = make_config(tmp_path, **data(4))
    config.custom_hooks += [dict(type='Disturb', rank=1)]
    config.dump(tmp_path / 'config.py')
    ends = launch(tmp_path / 'config.py', expected=None)
    message = 'the processes [1] chose other channels than process 0'
    # a process may see the other go before it has read what it was sent
    assert 2 in [code for code, output in ends if message in output]
    assert all(code for code, _ in ends)


def test_checkpoints_are_those_of_the_bare_model(half_batches):
    assert not any(name.startswith('module') for name in final(half_batches))
    assert sorted(p.name for p in half_batches.glob('flops_0.50*')) == [
        'flops_0.50.json',
        'flops_0.50.png',
        'flops_0.50.pth',
        'flops_0.50_finetune.py',
    ]


def test_killed_and_resumed(tmp_path):
    """Scores and random states of every rank outlive the processes.

    Checkpoints lie within pruning intervals.
    """
    whole, killed, ends = run_and_resume(
        tmp_path,
        **data(4, augment=True),
        model=dict(type='ToyClassifier', dropout=0.2),
        randomness=dict(seed=0, diff_rank_seed=True),
    )
    # both kill themselves, unless one sees the other go before that
    assert -signal.SIGKILL in [code for code, _ in ends]
    assert all(code for code, _ in ends)
    for rank in (0, 1):
        assert removals(killed, rank) == removals(whole, rank)
    ours, theirs = (final(d, 'epoch_6.pth') for d in (killed, whole))
    for name, tensor in theirs.items():
        assert ours[name].equal(tensor), name


def test_a_bad_batch_of_one_rank_is_skipped_by_both(tmp_path):
    # rank 1 sees image 5 in the first batch of every epoch
    kwargs = dict(
        data(4, shuffle=False, factors={'5': 'nan'}),
        hook=dict(interval=3, after_target='train'),
        log_level='INFO',
    )
    launch(write_config(tmp_path / 'config.py', tmp_path, **kwargs))
    assert removals(tmp_path, 0) == removals(tmp_path, 1)
    (log,) = tmp_path.glob('*/*.log')
    # once per epoch, until the target is reached in the third
    assert removals(tmp_path)[-1]['iter'] in range(13, 19)
    assert log.read_text().count('gradients are not finite') == 3
    assert 'iteration 13: ' in log.read_text()
    for name, tensor in final(tmp_path).items():
        assert tensor.isfinite().all(), name


def test_weights_go_as_in_one_process(tmp_path):
    """Two processes with half a batch each prune the same weights."""
    hook = dict(
        type='mmgfp.SparsityHook',
        density=0.3,
        criterion=dict(type='KFAC', batches=3, fisher='empirical'),
        steps=2,
        interval=3,
        compensate=True,
        after_target='train',
        input_shape=(8, 8),
    )
    states = []
    for ranks, batch in ((1, 8), (2, 4)):
        work_dir = tmp_path / str(ranks)
        config = make_config(
            work_dir,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            **data(batch),
        )
        config.custom_hooks = [hook]
        config.dump(tmp_path / f'{ranks}.py')
        launch(tmp_path / f'{ranks}.py', ranks=ranks)
        states.append(final(work_dir, 'epoch_1.pth'))
        assert final(work_dir, 'density_0.30.pth').keys() == states[-1].keys()
    one, two = states
    for name, tensor in one.items():
        assert (tensor == 0).equal(two[name] == 0), name
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    assert sum(int((t == 0).sum()) for t in one.values()) > 900


def test_statistics_of_the_first_process_are_measured(tmp_path):
    """Each process has its own of batch norms; a checkpoint has one."""

    def config(name: str, *hooks: dict) -> Path:
        changes = dict(model=dict(type='ToyClassifier', norm='BN'))
        found = make_config(tmp_path / name, **changes, **data(4))
        sparse = dict(
            type='mmgfp.SparsityHook',
            density=0.3,
            criterion=dict(type='KFAC', batches=3, fisher='empirical'),
            steps=3,
            interval=6,
            compensate=True,
            after_target='train',
            input_shape=(8, 8),
        )
        found.custom_hooks = [sparse, *hooks]
        path = tmp_path / f'{name}{len(hooks)}.py'
        found.dump(path)
        return path

    launch(config('whole'))
    stop = dict(type='Stop', iteration=10, kill=True)
    launch(config('killed', stop), expected=None)
    launch(config('killed'), '--resume')
    whole, killed = (
        final(tmp_path / name, 'density_0.30.pth')
        for name in ('whole', 'killed')
    )
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert tensor.equal(killed[name]), name
