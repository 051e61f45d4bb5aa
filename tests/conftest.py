"""Settings of every test: the CPU, one thread unless told otherwise, seeds."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

# most tests compare with what they compute on the CPU
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
