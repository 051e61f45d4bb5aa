"""Cost of networks with zeros in their weights."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..slimming.surgery import compute_again
from ..utils.copies import whole_copy
from ..utils.modes import modes_kept
from .model import Calls, record_calls

# Ratio of the elements that are zero in the trial.
_TRIED = 0.5

_BLOCK = 2**20  # bytes that are read at once


def nonzero_cost(model: nn.Module, calls: Calls) -> dict[str, int]:
    """Counts multiply-accumulates and parameters that are not zero.

    Args:
        model (nn.Module): The network.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`, with zeros.

    Returns:
        dict: ``flops`` and ``params``. Kernels that a module computes from
        several weights are counted as if they had no zeros.
    """
    flops = sum(calls.nonzero.values()) + calls.total_fixed('flops')
    params = sum(int(torch.count_nonzero(p)) for p in model.parameters())
    return {'flops': round(flops), 'params': params}


def file_sizes(path: str | os.PathLike) -> tuple[int, int]:
    """Counts the bytes of a file, as it is and compressed by zlib."""
    size = compressed = 0
    packer = zlib.compressobj()
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK):
            size += len(block)
            compressed += len(packer.compress(block))
    return size, compressed + len(packer.flush())


def weights_that_carry_zeros(
    model: nn.Module, calls: Calls, run: Callable[[nn.Module], Any]
) -> tuple[list[str], list[str]]:
    """Finds weights whose zeros are zeros of the kernels computed from them.

    A copy of the network with zeros in its weights is run once. A layer that
    subtracts the mean from its weight, for example, has a kernel without
    zeros.

    Args:
        model (nn.Module): The network.
        calls (Calls): From :func:`mmgfp.cost.model.record_calls`.
        run (Callable): Runs the network on demo input.

    Returns:
        tuple[list[str], list[str]]: Names of these parameters, and of the
        other parameters that kernels are computed from.
    """
    with modes_kept(model):
        compute_again(model.eval())  # tensors with a graph cannot be copied
        tried = whole_copy(model)
    weights = {
        name: parameter
        for name, parameter in tried.named_parameters()
        if name in calls.positions and parameter.dim() > 1
    }
    generator = torch.Generator().manual_seed(0)
    for weight in weights.values():
        gone = torch.rand(weight.shape, generator=generator) < _TRIED
        weight.data.masked_fill_(gone.to(weight.device), 0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # recording `calls` has warned
        found = record_calls(tried, lambda: run(tried), zeros=True)
    carry: list[str] = []
    others: list[str] = []
    for name, weight in weights.items():
        left = found.positions.get(name, 0) * int(torch.count_nonzero(weight))
        same = math.isclose(found.nonzero.get(name, -1), left, rel_tol=1e-6)
        (carry if same else others).append(name)
    return carry, others
