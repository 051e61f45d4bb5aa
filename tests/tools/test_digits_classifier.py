"""The shipped classifier of digits, end to end, each step as a user's command.

On a stack with MMClassification the configs are rewritten as the README says.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import ROOT, run_tool
from stack import CLASSIFICATION, PACK, require

from mmgfp import Structure

LIMIT = 300  # seconds per process
FILES = (
    '_base_/digits_classification.py',
    'quickstart/resnet18_digits.py',
    'quickstart/prune_resnet18_digits.py',
)


def run(tool: str, *args) -> str:
    result = run_tool(tool, *args, timeout=LIMIT)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def train(config: Path, work_dir: Path, epochs: int, **options) -> Path:
    """The checkpoint that training for so many epochs leaves."""
    settings = {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        **options,
    }
    run(
        'train.py',
        config,
        *('--work-dir', work_dir, '--cfg-options'),
        *(f'{key}={value}' for key, value in settings.items()),
    )
    return work_dir / f'epoch_{epochs}.pth'


def accuracy(config: Path, checkpoint: Path, work_dir: Path) -> float:
    """In percent, of a test in a fresh process."""
    run('test.py', config, checkpoint, '--work-dir', work_dir)
    (log,) = work_dir.glob('*/*.json')
    return json.loads(log.read_text())['accuracy/top1']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Data, and the configs for the classification library there is."""
    require(CLASSIFICATION)
    folder = tmp_path_factory.mktemp('digits')
    data = folder / 'digits'
    run('make_digits.py', '--train', 1, '--val', 1, '--out', data)
    for name in FILES:
        text = (ROOT / 'configs' / name).read_text()
        for shipped, here in (
            ('mmpretrain::', f'{CLASSIFICATION}::'),
            ("'PackInputs'", f"'{PACK}'"),
            ('data/digits/', f'{data}/'),
        ):
            text = text.replace(shipped, here)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_train_prune_finetune_test(folder):
    baseline, prune = (folder / name for name in FILES[1:])
    trained = train(baseline, folder / 'baseline', 3)
    train(prune, folder / 'pruned', 1, load_from=trained)
    pruned = folder / 'pruned' / 'flops_0.50.pth'
    cost = Structure.load(pruned.with_suffix('.json'))
    assert cost.cost_after['flops'] <= 0.5 * cost.cost_before['flops']

    finetune = folder / 'pruned' / 'flops_0.50_finetune.py'
    tuned = train(finetune, folder / 'finetuned', 1)
    assert accuracy(finetune, tuned, folder / 'test') > 80
    # the unchanged config takes what pruning left
    assert accuracy(prune, pruned, folder / 'unchanged') > 80
