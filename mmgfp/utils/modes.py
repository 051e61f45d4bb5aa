"""Training mode for tracing: losses are computed, nothing is random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import checkpoint


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Set training mode, but keep dropout and batch norms in eval mode."""
    with modes_kept(model):
        model.train()
        for module in model.modules():
            kind = type(module).__name__
            if isinstance(module, _NormBase) or 'Drop' in kind:
                module.eval()
        yield


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Run activation checkpointing (``with_cp``) as a plain forward.

    The first forward of a checkpointed part records no gradients, so its
    layers would seem not to train.
    """
    module: Any = checkpoint
    before = module.CheckpointFunction
    module.CheckpointFunction = _Direct
    try:
        yield
    finally:
        module.CheckpointFunction = before


class _Direct:
    @staticmethod
    def apply(run: Callable, preserve: bool, *args: Any) -> Any:
        return run(*args)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module afterwards."""
    modes = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_training(
    run: Callable[[nn.Module], Any],
) -> Callable[[nn.Module], Any]:
    """Returns the same forward, run inside :func:`training`."""

    def trained(model: nn.Module) -> Any:
        with training(model):
            return run(model)

    return trained


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the values of all buffers afterwards, such as statistics."""
    before = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
