"""Training mode as it is looked at: for the losses, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import checkpoint


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Training mode, without what makes results random or mixes images."""
    with modes_kept(model):
        model.train()
        for module in model.modules():
            kind = type(module).__name__
            if isinstance(module, _NormBase) or 'Drop' in kind:
                module.eval()
        yield


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Run what is checkpointed (``with_cp``) as if it were not.

    The first of its two forwards keeps no gradients, so that nothing inside
    would seem to train.
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
    """The mode of every module is afterwards what it was."""
    modes = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_training(
    run: Callable[[nn.Module], Any],
) -> Callable[[nn.Module], Any]:
    """The same forward, with the model as :func:`training` sets it."""

    def trained(model: nn.Module) -> Any:
        with training(model):
            return run(model)

    return trained
