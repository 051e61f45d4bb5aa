"""Settings of every test: the CPU, one thread unless told otherwise, seeds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import shortcuts
import torch

# most tests compare with what they compute on the CPU
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
shortcuts.plain_logs()

# folders of tests that `make test ARGS='-m quick'` runs
QUICK = ('cost', 'criteria', 'search', 'slimming', 'utils')
# files in them that train, measure or build large networks
SLOW = (
    *('test_cost.py', 'test_crafted.py', 'test_criteria.py', 'test_fisher.py'),
    *('test_golden.py', 'test_latency.py', 'test_masking.py'),
    'test_merging.py',
)


# whose tests take minutes: begun last, they would run alone at the end
LONG = ('test_digits_classifier.py',)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the core, and begin with the longest tests."""
    items.sort(key=lambda item: item.path.name not in LONG)
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in QUICK and item.path.name not in SLOW:
            item.add_marker('quick')


def pytest_collection_finish() -> None:
    """Every module of the tests is imported by now."""
    shortcuts.remember_imports()


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=[True, False], ids=['waits', 'never'])
def waits(request: pytest.FixtureRequest, monkeypatch) -> bool:
    """Whether guards wait to know, as on a CPU, or never, as on a GPU."""
    from mmgfp.engine.steps import StepGuard

    monkeypatch.setattr(StepGuard.__init__, '__defaults__', (request.param,))
    return request.param
