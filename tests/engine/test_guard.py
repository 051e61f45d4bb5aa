"""Bad batches, also where nobody waits for the device to tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmgfp.engine.steps import MAX_SKIPPED, StepGuard, are_finite
from mmgfp.slimming.surgery import cut_model

VECTORS = 'weight', 'bias', 'running_mean', 'running_var'


class Training:
    """A network with statistics, and its guard."""

    def __init__(self, waits: bool, accumulate: int = 1) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.guard = StepGuard(self.model, [self.optimizer], waits)
        self.accumulate, self.batches = accumulate, 0

    def batch(self, factor: float = 1.0) -> bool:
        self.guard.begin()
        images = factor * torch.randn(8, 4)
        self.model(images).square().mean().backward()
        self.batches += 1
        if self.batches % self.accumulate == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self.guard.end_batch(self.guard.is_finite())

    def state(self) -> dict[str, torch.Tensor]:
        return {n: t.clone() for n, t in self.model.state_dict().items()}


def same(a: dict, b: dict) -> list[str]:
    return [n for n in a if a[n].equal(b[n])]


@pytest.mark.parametrize('waits', [True, False])
def test_bad_batch_changes_nothing(waits):
    training = Training(waits)
    assert training.batch()
    before = training.state()
    assert training.batch(float('nan')) == (not waits)
    assert same(before, training.state()) == list(before)
    assert training.guard.stepped == (not waits)
    assert training.guard.num_skipped() == (1, 1)
    assert training.guard.num_skipped() == (0, 1)
    assert training.batch()
    assert same(before, training.state()) == []
    assert training.guard.num_skipped() == (0, 0)


@pytest.mark.parametrize('waits', [True, False])
def test_bad_batch_among_accumulated_ones(waits):
    """All of the step goes, and what its batches told the statistics."""
    training = Training(waits, accumulate=3)
    for _ in range(3):
        training.batch()
    before = training.state()
    for factor in (1.0, float('inf'), 1.0):
        training.batch(factor)
    assert same(before, training.state()) == list(before)
    for _ in range(3):
        training.batch()
    assert same(before, training.state()) == []
    assert training.guard.num_skipped() == (1, 0)


@pytest.mark.parametrize('waits', [True, False])
def test_cut_between_accumulated_batches(waits):
    """A bad step restores the statistics of the channels that are left."""
    training = Training(waits, accumulate=3)
    for _ in range(3):
        training.batch()
    before = training.state()
    training.batch()
    left = [0, 2]
    axes = [('0.weight', 0), ('2.weight', 1)]
    axes += [(f'1.{name}', 0) for name in VECTORS]
    keep = {key: np.array(left) for key in axes}
    training.guard.cut(keep)
    cut_model(training.model, keep)
    training.batch()
    training.batch(float('nan'))
    after = training.state()
    for name in ('running_mean', 'running_var'):
        assert after[f'1.{name}'].equal(before[f'1.{name}'][left]), name
    assert after['2.weight'].equal(before['2.weight'][:, left])
    for _ in range(3):
        training.batch()
    assert same(after, training.state()) == []


@pytest.mark.parametrize('waits', [True, False])
def test_too_many_in_a_row(waits):
    training = Training(waits)
    training.batch(float('nan'))
    training.batch()
    for _ in range(MAX_SKIPPED - 1):
        training.batch(float('nan'))
    assert training.guard.num_skipped() == (MAX_SKIPPED, MAX_SKIPPED - 1)
    training.batch(float('nan'))
    with pytest.raises(RuntimeError, match=f'in {MAX_SKIPPED} batches'):
        training.guard.num_skipped()


def test_too_many_before_the_news():
    training = Training(waits=False)
    for _ in range(MAX_SKIPPED):
        training.batch(float('nan'))
    training.batch()
    with pytest.raises(RuntimeError, match='in a row'):
        training.guard.num_skipped()


def test_going_on_with_a_count():
    training = Training(waits=True)
    training.guard.resume(MAX_SKIPPED - 1)
    training.batch(float('nan'))
    with pytest.raises(RuntimeError, match='in a row'):
        training.guard.num_skipped()


def test_finite():
    is_finite = torch.ones(3)
    assert are_finite([])
    assert are_finite([is_finite, torch.full((2,), 6e4).half()])
    assert not are_finite([is_finite, torch.tensor([1.0, float('nan')])])
    assert not are_finite([torch.tensor([float('inf'), float('-inf')])])


def test_detach_leaves_nothing_behind():
    training = Training(waits=False)
    training.guard.detach()
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
