"""What pruning needs to know of, or change in, an mmengine runner."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from .adapt import unwrap


def optimizers(runner: Runner) -> list[torch.optim.Optimizer]:
    """All optimisers of a runner."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapper):
        return [wrapper.optimizer]
    return [part.optimizer for part in wrapper.values()]


def loss_factor(runner: Runner) -> float:
    """What the runner multiplies the loss of this iteration with.

    The loss scale of mixed precision, divided by the number of batches whose
    gradients are accumulated.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper):
        return 1.0
    factor = float(wrapper.scale_loss(torch.ones(())))
    scaler = getattr(wrapper, 'loss_scaler', None)
    return factor * float(scaler.get_scale()) if scaler else factor


def accumulation(runner: Runner) -> int:
    """Iterations per optimiser step."""
    return int(getattr(runner.optim_wrapper, '_accumulative_counts', 1))


def averaged_models(runner: Runner) -> Iterator[BaseAveragedModel]:
    """The averaged copies of the model that EMA hooks keep."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
            yield hook.ema_model


def refresh_averaged_models(runner: Runner) -> None:
    """Let averaged models see that their tensors were sliced.

    With ``update_buffers`` they keep a state dict, whose tensors share
    memory with the parameters of the time when it was made.
    """
    for averaged in averaged_models(runner):
        if averaged.update_buffers:
            averaged.avg_parameters = averaged.module.state_dict()


def rewrap(runner: Runner) -> None:
    """Wrap the model for distributed training anew: its buckets changed."""
    model = unwrap(runner.model)
    runner.model = model
    gc.collect()  # the old wrapper's reducer lets go of the parameters
    runner.model = runner.wrap_model(
        runner.cfg.get('model_wrapper_cfg'), model
    )


def sum_over_ranks(tensor: Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    dist.all_reduce(tensor)


class _Announcing:
    """An iterator that calls something before each of its elements."""

    def __init__(
        self, iterator: Iterator, announce: Callable[[], None]
    ) -> None:
        self._iterator = iterator
        self._announce = announce

    def __next__(self) -> Any:
        self._announce()
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def before_each_batch(runner: Runner, announce: Callable[[], None]) -> None:
    """Call something before each batch of a loop that counts iterations.

    Resumed, such a loop first skips the batches of the past, which early
    releases of mmengine load to that end; no hook is called in between.
    """
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = _Announcing(
            loop.dataloader_iterator, announce
        )


def checkpoint_is_due(runner: Runner) -> bool:
    """Whether a checkpoint is saved after this iteration, on all ranks."""
    return any(
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_iter(runner))
        )
        for hook in runner.hooks
    )
