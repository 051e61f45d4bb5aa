"""Two processes (gloo) against one, through the real tool."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from toy import (
    command,
    environment,
    load,
    loader,
    make_config,
    removals,
    run_tool,
    write_config,
)

LIMIT = 150  # seconds; a hang is a failure


def launch(config: Path, *args: str, expected: int = 0) -> None:
    """Train with two processes; both must end as expected, in time."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            command('train.py', config, '--launcher', 'pytorch', *args),
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE='2',
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=port,
                CUDA_VISIBLE_DEVICES='',
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=LIMIT)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == expected, output[-4000:]


def data(batch_size: int, **kwargs) -> dict:
    return dict(train_dataloader=loader(batch_size, size=48, **kwargs))


def final(work_dir: Path, name: str = 'flops_0.50.pth') -> dict:
    return load(work_dir / name)['state_dict']


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


def test_equal_to_one_process_with_whole_batches(half_batches, tmp_path):
    config = write_config(tmp_path / 'config.py', tmp_path, **data(8))
    result = run_tool('train.py', config, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    assert removals(tmp_path) == removals(half_batches)
    ours, theirs = final(half_batches), final(tmp_path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name
        )


def test_checkpoints_are_those_of_the_bare_model(half_batches):
    assert not any(name.startswith('module') for name in final(half_batches))
    assert sorted(p.name for p in half_batches.glob('flops_0.50*')) == [
        'flops_0.50.json',
        'flops_0.50.png',
        'flops_0.50.pth',
        'flops_0.50_finetune.py',
    ]


def test_killed_and_resumed(tmp_path):
    """Scores and random states of every rank outlive the processes."""
    kwargs = dict(
        data(4, augment=True),
        # checkpoints lie within pruning intervals of 4
        hook=dict(interval=4, after_target='train'),
        model=dict(type='ToyClassifier', dropout=0.2),
        randomness=dict(seed=0, diff_rank_seed=True),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for work_dir in (whole, killed):
        work_dir.mkdir()
    launch(write_config(tmp_path / 'whole.py', whole, **kwargs))
    config = make_config(killed, **kwargs)
    config.custom_hooks += [dict(type='Stop', iteration=9, kill=True)]
    config.dump(tmp_path / 'killed.py')
    launch(tmp_path / 'killed.py', expected=-signal.SIGKILL)
    for log in killed.glob('removals_*.jsonl'):  # done again after epoch 1
        log.write_text(log.read_text().splitlines(True)[0])
    launch(write_config(tmp_path / 'again.py', killed, **kwargs), '--resume')
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
