"""Settings of every test: one thread unless told otherwise, same seeds."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
