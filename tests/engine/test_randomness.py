"""Random states that survive a checkpoint."""

from __future__ import annotations

import pickle
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from mmgfp.engine.resume import RandomKeeper, separate_loader
from mmgfp.utils.random_state import random_state, set_random_state


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        *torch.randn(3).tolist(),
    ]


def test_draws_the_same_again():
    draw()  # an odd number of normal draws: one is cached
    state = random_state()
    expected = [draw() for _ in range(3)]
    draw()
    set_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_state_is_plain(tmp_path):
    draw()
    torch.save(random_state(), tmp_path / 'state.pth')
    expected = draw()
    # weights_only refuses everything but tensors and plain types
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == expected


def test_keeper_resumes_until_training_goes_on():
    keeper = RandomKeeper()
    states = pickle.loads(pickle.dumps(keeper.states()))
    expected = draw()
    resumed = RandomKeeper()
    resumed.resume_from(states)
    for _ in range(2):  # skipped batches, too, are loaded
        resumed.restore()
        assert draw() == expected
    resumed.forget()
    resumed.restore()
    assert draw() != expected


def test_keeper_rewinds_what_validation_drew():
    keeper = RandomKeeper()
    keeper.rewind()  # nothing was kept, so nothing changes
    keeper.keep()
    expected = draw()
    draw()
    keeper.rewind()
    assert draw() == expected
    assert keeper.states() is keeper.states()
    keeper.forget()
    assert draw() != expected


def test_a_separate_loader_leaves_the_common_generator_alone():
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    state = torch.get_rng_state()
    next(iter(loader))
    assert not torch.get_rng_state().equal(state)  # why it is needed
    separate_loader(loader, 0)
    state = torch.get_rng_state()
    next(iter(loader))
    assert torch.get_rng_state().equal(state)


def test_a_loader_with_a_generator_keeps_it():
    mine = torch.Generator()
    loader = DataLoader(TensorDataset(torch.arange(4)), generator=mine)
    separate_loader(loader, 0)
    assert loader.generator is mine
