"""Which libraries are there; the tests run with those of every stack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

# MMClassification became MMPretrain: the same models under another name.
CLASSIFICATION = 'mmpretrain' if find_spec('mmpretrain') else 'mmcls'

# The transform that ends a pipeline was renamed as well.
PACK = dict(mmpretrain='PackInputs', mmcls='PackClsInputs')[CLASSIFICATION]


def require(package: str) -> None:
    """Skip the running test where a package is missing."""
    if find_spec(package) is None:
        pytest.skip(f'this stack has no {package}')


@contextmanager
def derivatives() -> Iterator[None]:
    """Skip the running test where torch cannot go back through the net."""
    try:
        yield
    except RuntimeError as error:
        if not re.search('derivative for .* not implemented', str(error)):
            raise
        pytest.skip(f'this torch says: {error}')


def loss_scaler(scale: float):
    """What scales losses on a CPU; skips the running test without it."""
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('this torch has no loss scaler for CPUs')
    return torch.amp.GradScaler('cpu', init_scale=scale)
